"""Watching a model run: what goes into its layers, and the gradients of its weights.

Nothing is kept but what the caller makes of each input as it passes, and one sum per weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.errors import UsageError
from lorimer.layers.convolution import ConvolutionGeometry, TransposedConvolutionGeometry
from lorimer.layers.geometry import Geometry
from lorimer.layers.linear import LinearGeometry
from lorimer.layers.quantised import is_quantised
from lorimer.layers.sites import Site


def can_observe(site: Site) -> bool:
    """Whether `observed_inputs` sees what the site's matrix multiplies."""
    kinds = (LinearGeometry, ConvolutionGeometry)
    called = site.parameter == "weight" and issubclass(site.geometry, kinds)
    return called and not issubclass(site.geometry, TransposedConvolutionGeometry)


@contextmanager
def observed_inputs(
    sites: Mapping[str, Site], see: Callable[[str, Tensor], None], keep: Callable[[], Tensor | None]
) -> Iterator[Callable[[str], None]]:
    """Within this context `see(path, rows)` is called with the rows (n, in) that a site's matrix multiplies,
    in float32 or wider, each time its layer runs. `keep()` may give a mask over the leading axes of inputs;
    inputs with those axes lose the rows where it is false. Gives a function that stops watching a path."""
    with ExitStack() as stack:
        handles = {}
        for path, site in sites.items():
            hook = _hook(path, site.geometry(site.layer, site.parameter), see, keep)
            handles[path] = site.layer.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handles[path].remove)
        yield lambda path: handles[path].remove()


def _hook(
    path: str, geometry: Geometry, see: Callable[[str, Tensor], None], keep: Callable[[], Tensor | None]
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    @torch.no_grad()
    def hook(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = (args[0] if args else options["input"]).detach()
        mask = keep()
        if mask is not None and mask.shape == x.shape[: mask.ndim] and mask.ndim < x.ndim:
            x = x[mask.to(x.device, torch.bool)]
        rows = _rows(geometry, x.to(torch.promote_types(x.dtype, torch.float32)))
        if len(rows):
            see(path, rows)

    return hook


def _rows(geometry: Geometry, x: Tensor) -> Tensor:
    """The rows (n, in) that a layer's matrix multiplies when its input is x: for a convolution its patches,
    which are what it gives with the identity for a weight."""
    if isinstance(geometry, LinearGeometry):
        return x.reshape(-1, x.shape[-1])
    channels, *kernel = geometry.weight.shape[1:]
    size = channels * torch.Size(kernel).numel()
    identity = torch.eye(size, dtype=x.dtype, device=x.device).view(size, channels, *kernel)
    groups = geometry.layer.groups
    patches = geometry.apply(identity.repeat(groups, *[1] * (identity.ndim - 1)), None, x)
    axis = patches.ndim - len(kernel) - 1  # inputs come also without a batch
    return patches.movedim(axis, -1).reshape(-1, size)


@contextmanager
def summed_gradients(sites: Mapping[str, Site]) -> Iterator[dict[str, Tensor]]:
    """Within this context backward passes add each site's gradient, as a matrix (out, in) or a stack of them,
    to what is given: sums on the CPU in float32 or wider. On the device one gradient lives at a time.

    Raises:
        UsageError: a weight is quantised and so has no gradient.
    """
    sums: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path, site in sites.items():
            weight = site.layer._parameters[site.parameter]
            if weight is None or is_quantised(site.layer):
                raise UsageError(f"{path!r}: a quantised weight has no gradient; choose another start")
            trained = weight.requires_grad
            stack.callback(weight.requires_grad_, trained)
            weight.requires_grad_(True)
            handle = weight.register_post_accumulate_grad_hook(_adder(path, site, sums))
            stack.callback(handle.remove)
        yield sums


def _adder(path: str, site: Site, sums: dict[str, Tensor]) -> Callable[[Tensor], None]:
    geometry = site.geometry(site.layer, site.parameter)

    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = geometry.to_matrix(weight.grad).cpu()
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        sums[path] = sums[path] + gradient if path in sums else gradient.clone()
        weight.grad = None

    return add
