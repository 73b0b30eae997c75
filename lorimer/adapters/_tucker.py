"""Matrices kept as two factors, for convolutions, in Tucker form (LyCORIS, arXiv 2309.14859).

plain     w = up · down                    up: (out, rank), down: (rank, in · prod(kernel))
Tucker    w = core x1 up x2 down           core: (rank, rank, *kernel), up: (rank, out), down: (rank, in)

The Tucker form trains rank (out + in) + rank² prod(kernel) numbers where the plain one trains
rank (out + in · prod(kernel)). Both are a product of two factors of that rank. Any tensor may have a
leading stack axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lorimer.adapters._base import WeightSpec


def kernel_of(spec: WeightSpec) -> tuple[int, ...]:
    """The kernel's size; () where it is 1 in every direction, or where there is none."""
    kernel = spec.down_shape[1:]
    return kernel if math.prod(kernel) > 1 else ()


def empty_factors(
    spec: WeightSpec, rank: int, out: int, into: int, tucker: bool
) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter | None]:
    """Unfilled up, down and core (None in the plain form) of a matrix (out, into · prod(kernel))."""
    if tucker and kernel_of(spec):
        return spec.empty(rank, out), spec.empty(rank, into), spec.empty(rank, rank, *kernel_of(spec))
    return spec.empty(out, rank), spec.empty(rank, into * math.prod(spec.down_shape[1:])), None


def two_factors(up: Tensor, down: Tensor, core: Tensor | None, stacked: int = 0) -> tuple[Tensor, Tensor]:
    """(up, down) of shapes (out, rank) and (rank, in · prod(kernel)), from either form."""
    if core is None:
        return up, down
    filters = torch.einsum("...ijk,...jq->...iqk", core.flatten(stacked + 2), down)
    return up.mT, filters.flatten(-2)
