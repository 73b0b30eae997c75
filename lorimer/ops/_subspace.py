"""A whole model trained in a random subspace: theta = theta0 + P v, of v alone.

P (D, d) is never formed. It consists of blocks of rows, each a Fastfood matrix (Le, Sarlós & Smola 2013,
section 3; as used by Li et al. 2018, arXiv 1804.08838, section 2 and supplement 7)

    H · G · Π · H · S      H: Walsh-Hadamard, G: normal diagonal, Π: permutation, S: signs

so that D numbers take D log d operations and five bytes each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorimer.adapters._base import Adapter, Method, WeightSpec
from lorimer.attachment.attach import install
from lorimer.attachment.survey import survey
from lorimer.errors import UsageError
from lorimer.layers.sites import Site


class Projection:
    """P (size, dimension), with columns of length 1 in expectation."""

    def __init__(self, size: int, dimension: int, seed: int, device: torch.device) -> None:
        self.width = 1 << math.ceil(math.log2(dimension))
        self.scale = 1 / math.sqrt(self.width * size)
        generator = torch.Generator().manual_seed(seed)
        shape = (math.ceil(size / self.width), self.width)
        self.signs = (torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1).to(device)
        self.normal = torch.randn(shape, generator=generator).to(device)
        self.order = torch.randperm(self.width, generator=generator).to(device)

    def rows(self, v: Tensor, start: int, stop: int) -> Tensor:
        """(P v)[start:stop] of v (dimension,)."""
        first, last = start // self.width, math.ceil(stop / self.width)
        padded = F.pad(v, (0, self.width - len(v)))
        mixed = walsh_hadamard(self.signs[first:last] * padded)[:, self.order]
        result = walsh_hadamard(self.normal[first:last].to(v.dtype) * mixed).flatten() * self.scale
        return result[start - first * self.width : stop - first * self.width]


def walsh_hadamard(x: Tensor) -> Tensor:
    """H x along the last axis, whose length must be a power of 2; not normalised."""
    length, step = x.shape[-1], 1
    while step < length:
        pairs = x.unflatten(-1, (length // (2 * step), 2, step))
        left, right = pairs.unbind(-2)
        x = torch.stack([left + right, left - right], -2).flatten(-3)
        step *= 2
    return x


@dataclass(frozen=True)
class _Shift(Method):
    """No method of files: it lives as long as one trial."""

    name: ClassVar[str] = "subspace"
    replaces: ClassVar[bool] = True
    ranked: ClassVar[bool] = False
    tensors: ClassVar[dict[str, dict[str, str]]] = {}

    def build(self, spec: WeightSpec) -> Adapter:
        raise NotImplementedError


class _ShiftAdapter(Adapter):
    """theta0 + (P v)[start : start + n] of one parameter. All of them share v."""

    def __init__(self, v: nn.Parameter, projection: Projection, start: int) -> None:
        super().__init__()
        self.method, self.v, self.projection, self.first = _Shift(), v, projection, start

    def start(self, weight: Callable[[], Tensor]) -> None:
        """v is zero already."""

    def adapt(self, weight: Tensor) -> Tensor:
        change = self.projection.rows(self.v, self.first, self.first + weight.numel())
        return weight + change.view_as(weight).to(weight.dtype)


def confine(model: nn.Module, dimension: int, seed: int) -> nn.Parameter:
    """Freeze `model` and let every parameter of it that was trainable move in a common random subspace;
    returns v (dimension,), which starts at zero. Modules that share a parameter still share it.

    Raises:
        UsageError: nothing in it is trainable, or it has fewer parameters than dimensions.
    """
    sites = [site for site in survey(model).sites.values() if _parameter(site).requires_grad]
    starts: dict[nn.Parameter, int] = {}
    size = 0
    for parameter in map(_parameter, sites):
        if parameter not in starts:
            starts[parameter], size = size, size + parameter.numel()
    if not 1 <= dimension <= size:
        raise UsageError(f"a dimension must be from 1 to the {size:,} trainable parameters, not {dimension}")
    first = _parameter(sites[0])
    dtype = torch.promote_types(first.dtype, torch.float32)
    v = nn.Parameter(torch.zeros(dimension, dtype=dtype, device=first.device))
    projection = Projection(size, dimension, seed, first.device)
    shifts = {parameter: _ShiftAdapter(v, projection, start) for parameter, start in starts.items()}
    planned: dict[str, tuple[Site, Adapter]] = {site.path: (site, shifts[_parameter(site)]) for site in sites}
    install(model, planned, "subspace")
    return v


def _parameter(site: Site) -> nn.Parameter:
    parameter = site.layer._parameters[site.parameter]
    assert parameter is not None
    return parameter
