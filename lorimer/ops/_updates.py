"""Updates of layers as products of factors, outside any model, and the LoRA layers made of them.

Every operation on adapters works on these: whatever the method, its rank, its alpha or its scaling rule,
a layer's update is one matrix W' - W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorimer import registry
from lorimer.adapters._state import AdapterState, LayerState
from lorimer.attachment.attach import build_at
from lorimer.attachment.attached import live_sites
from lorimer.attachment.survey import survey
from lorimer.errors import LorimerError, TargetError, UsageError, suggest
from lorimer.layers.sites import Site
from lorimer.ops._derived import LayerChange
from lorimer.ops._spectrum import EVERYTHING, Keep, dense_svd, factored_svd, split, squared_norm, tail_error

PLAIN = "lora"  # the method that every result is in


@dataclass(frozen=True)
class Update:
    """One layer's W' - W = up · down, in float64.

    Attributes:
        up, down: (out, R) and (R, in), or stacks of them.
        bias: b' - b of shape (out,), or None where the bias is left alone.
        up_shape, down_shape: see `WeightSpec`; how a file shapes the factors.
        form: a layer's state without tensors; what else a file says of the layer.
        dtype: the precision that the layer's tensors came in.
        exact: the LoRA layer that this update was read from, which then is the best form of it.
    """

    up: Tensor
    down: Tensor
    bias: Tensor | None
    up_shape: tuple[int, ...]
    down_shape: tuple[int, ...]
    form: LayerState
    dtype: torch.dtype
    exact: LayerState | None = None

    @property
    def rank(self) -> int:
        return self.up.shape[-1]

    @property
    def stacked(self) -> int:
        return self.up.ndim - 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Of everything that must agree before updates can be added."""
        return (*self.up.shape[:-1], *self.down_shape, self.form.groups)

    def dense(self) -> Tensor:
        """The update itself, (out, in) or a stack."""
        return self.up @ self.down

    def layer(self) -> LayerState:
        """The update as a LoRA layer of scale 1."""
        if self.exact is not None:
            return self.exact
        stack = self.up.shape[: self.stacked]
        tensors = {
            "A": self.down.reshape(*stack, self.rank, *self.down_shape),
            "B": self.up.reshape(*stack, self.up.shape[-2], self.rank, *self.up_shape),
        }
        if self.bias is not None:
            tensors["bias"] = self.bias
        rounded = {name: tensor.to(self.dtype).contiguous() for name, tensor in tensors.items()}
        return replace(self.form, tensors=rounded, rank=self.rank, alpha=float(self.rank))


def updates_of(
    state: AdapterState, model: nn.Module | None = None, keep: Keep = EVERYTHING, *, whole: bool = False
) -> Iterator[tuple[str, Update, LayerChange]]:
    """Layer by layer, the update, with no more of it than `keep` asks for, and what became of it.

    Exact factors where the method has them; else the difference that it makes to the weights of `model`,
    which is of full rank: `keep` must say how much of it, or `whole` that all is meant.

    Raises:
        UsageError: a layer needs the model, or needs to be told how much to keep.
        LorimerError: the adapter holds NaN or infinity, or cannot be merged at all.
    """
    if model is not None:
        live_sites(model)
    sites = {} if model is None else survey(model).sites
    for path, layer in state.layers.items():
        require_finite(path, layer.tensors)
        update = _factored(state, path, sites.get(path))
        if update is not None:
            yield path, *compressed(update, keep)
        elif model is None:
            raise UsageError(
                f"{path!r}: what the method {state.method!r} does to a weight depends on that weight; "
                "give the base model too (model=, --model)"
            )
        elif path not in sites:
            raise TargetError(f"the model has no {path!r}.{suggest(path, sites)}")
        else:
            yield path, *_by_difference(state, path, sites[path], keep, whole)


def compressed(update: Update, keep: Keep) -> tuple[Update, LayerChange]:
    """The update with as much of it as `keep` asks for; as it is where that is everything."""
    norm = math.sqrt(product_norm_squared(update.up, update.down))
    limit = min(update.up.shape[-2], update.down.shape[-1])
    if keep.everything and update.exact is None and update.rank > limit:
        keep = Keep(error=0.0)  # more factors than the matrix has rank
    if keep.everything or (keep.share is None and update.rank <= (keep.rank or 0)):
        return update, LayerChange(update.rank, update.rank, norm, 0.0)
    svd = factored_svd(update.up, update.down)
    count = keep.count(svd[1], squared_norm(svd[1])) or svd[1].shape[-1]
    change = LayerChange(update.rank, min(count, update.rank), norm, tail_error(svd[1], count))
    if count >= update.rank:
        return update, change
    up, down = split(svd, count)
    return replace(update, up=up, down=down, exact=None), change


def approximated(
    dense: Tensor,
    keep: Keep,
    *,
    like: Update | Site,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Update, LayerChange]:
    """A dense update (out, in), or a stack, as factors, with as much of it as `keep` asks for; `like` tells
    the factors' shapes."""
    svd = dense_svd(dense, keep)
    total = squared_norm(dense)
    up, down = split(svd, keep.count(svd[1], total) or svd[1].shape[-1])
    lost = squared_norm(dense - up @ down)
    form = (like.up_shape, like.down_shape, like.form) if isinstance(like, Update) else form_of(like)
    update = Update(up.double(), down.double(), bias, *form, dtype)
    error = math.sqrt(lost / total) if total else 0.0
    return update, LayerChange(None, update.rank, math.sqrt(total), error)


def plain_state(like: AdapterState, layers: Mapping[str, LayerState], **changes: Any) -> AdapterState:
    """A LoRA state of these layers; everything else as in `like`."""
    method = registry.get("method", PLAIN)
    ranks = [layer.rank for layer in layers.values()]
    if not ranks and not changes.get("full", like.full):
        raise UsageError("nothing is left to make an adapter of")
    return replace(like, method=PLAIN, config=method.config_of(layers), layers=dict(layers), **changes)


def product_norm_squared(up: Tensor, down: Tensor) -> float:
    """‖up · down‖² without the product: trace((upᵀup)(down downᵀ)), two R x R matrices."""
    return max(torch.sum((up.mT @ up) * (down @ down.mT)).item(), 0.0)


def _factored(state: AdapterState, path: str, site: Site | None) -> Update | None:
    """The update of a layer as its method's own factors; None where it has none."""
    layer, method = state.layers[path], registry.get("method", state.method)
    wide = replace(layer, tensors={name: tensor.double() for name, tensor in layer.tensors.items()})
    factors = method.factors(wide, state.config)
    if factors is None:
        return None
    up, down = factors
    form = form_of(site) if site is not None else _form_in_file(layer, method.rank_axes, down.shape[-1])
    exact = layer if state.method == PLAIN and up.shape[-1] == layer.rank else None
    return Update(up, down, method.bias_change(wide, state.config), *form, _dtype(layer), exact)


_Form = tuple[tuple[int, ...], tuple[int, ...], LayerState]  # up_shape, down_shape, form


def form_of(site: Site) -> _Form:
    """How a file shapes the factors of a model's parameter.

    Raises:
        TargetError: LoRA cannot adapt it.
    """
    geometry = site.geometry(site.layer, site.parameter)
    spec = geometry.spec()
    if spec.kind not in registry.get("method", PLAIN).kinds:
        raise TargetError(f"{site.path!r} is a {spec.kind}, which LoRA cannot adapt; train it in full")
    form = LayerState({}, 1, 1.0, spec.groups, len(spec.stack), geometry.file_kind())
    return spec.up_shape, spec.down_shape, form


def _form_in_file(layer: LayerState, rank_axes: Mapping[str, int], columns: int) -> _Form:
    """The same as the layer's own factors show it: those along whose first axis the rank runs."""
    shapes = {name: tuple(tensor.shape[layer.stacked :]) for name, tensor in layer.tensors.items()}
    downs = [shapes[name][1:] for name, axis in rank_axes.items() if axis == 0 and name in shapes]
    down_shape = next((shape for shape in downs if math.prod(shape) == columns), (columns,))
    return (1,) * (len(down_shape) - 1), down_shape, replace(layer, tensors={})


def _by_difference(
    state: AdapterState, path: str, site: Site, keep: Keep, whole: bool
) -> tuple[Update, LayerChange]:
    """The update as the difference that the method makes to the model's weight."""
    layer, method = state.layers[path], registry.get("method", state.method)
    if not method.mergeable:
        raise LorimerError(f"{path!r}: an adapter of method {state.method!r} gives no weights to compare")
    if keep.everything and not whole:
        raise UsageError(
            f"{path!r}: the update of method {state.method!r} is no product of small factors; "
            "say how much to keep: a rank, an energy or an error"
        )
    geometry = site.geometry(site.layer, site.parameter)
    config = method.layer_config(layer, state.config)
    adapter = build_at(method(rank=layer.rank, alpha=layer.alpha, **config), site, torch.float64)
    adapter.load_state_dict(layer.tensors)
    with torch.no_grad():
        weight = geometry.matrix().double()
        change = adapter.adapt(weight) - weight
        bias = None if geometry.bias is None else geometry.bias.double()
        adapted = adapter.adapt_bias(bias)
    moved = None if bias is None or adapted is None or adapted is bias else adapted - bias
    return approximated(change, keep, like=site, bias=moved, dtype=_dtype(layer))


def _dtype(layer: LayerState) -> torch.dtype:
    """The widest precision among a layer's tensors."""
    dtypes = [tensor.dtype for tensor in layer.tensors.values() if tensor.is_floating_point()]
    widest = dtypes[0]
    for dtype in dtypes[1:]:
        widest = torch.promote_types(widest, dtype)
    return widest


def require_finite(path: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise `LorimerError` where a tensor of the layer at `path` holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise LorimerError(f"{path!r}: tensor {name!r} holds NaN or infinity; the adapter is broken")
