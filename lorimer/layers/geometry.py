"""How each layer type sees its weight as a matrix, and how it runs with another weight.

A geometry is stateless and chosen by the layer's class; supporting a new layer type means writing
one class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorimer.adapters._base import WeightSpec
from lorimer.kernels.low_rank import low_rank_conv2d, low_rank_linear

# Precisions too coarse to train small updates in; adapters beside such weights are kept in float32.
_COARSE = (torch.float16, torch.bfloat16)


class Geometry(ABC):
    """The contract between a layer type and every adapter."""

    @staticmethod
    @abstractmethod
    def factor_shapes(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes behind the rank of a down factor (rank, ...) and behind (out, rank) of an up factor."""

    @staticmethod
    def to_matrix(weight: Tensor) -> Tensor:
        """The weight as a matrix (out, in)."""
        return weight.flatten(1)

    @staticmethod
    def from_matrix(matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `to_matrix` for a weight of `shape`."""
        return matrix.view(shape)

    @staticmethod
    @abstractmethod
    def apply(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output for `x` with `weight` in place of its own."""

    @staticmethod
    @abstractmethod
    def low_rank(layer: Any, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor | None:
        """The output change that the update scale · B·A makes, without forming it; None where that
        has no advantage."""


class LinearGeometry(Geometry):
    """weight (out, in)."""

    @staticmethod
    def factor_shapes(layer: nn.Linear) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (layer.in_features,), ()

    @staticmethod
    def apply(layer: nn.Linear, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, layer.bias)

    @staticmethod
    def low_rank(layer: nn.Linear, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        return low_rank_linear(x, A, B, scale)


class Conv2dGeometry(Geometry):
    """weight (out, in / groups, k_h, k_w), as a matrix (out, in / groups · k_h · k_w)."""

    @staticmethod
    def factor_shapes(layer: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(layer.weight.shape[1:]), (1, 1)

    @staticmethod
    def apply(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
        return layer._conv_forward(x, weight, layer.bias)

    @staticmethod
    def low_rank(layer: nn.Conv2d, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor | None:
        # With groups, factors would run once per group (groups · rank channels in between); the
        # grouped weight itself is small, so the weight path is the cheaper one.
        return low_rank_conv2d(x, A, B, scale, layer) if layer.groups == 1 else None


_GEOMETRIES: dict[type[nn.Module], type[Geometry]] = {nn.Linear: LinearGeometry, nn.Conv2d: Conv2dGeometry}


def geometry_of(layer: nn.Module) -> type[Geometry] | None:
    """The geometry of a layer, found along its class's ancestry; None where it cannot be adapted."""
    return next((_GEOMETRIES[cls] for cls in type(layer).__mro__ if cls in _GEOMETRIES), None)


def supported_layers() -> list[str]:
    """Names of the layer types that can be adapted, for messages."""
    return [cls.__name__ for cls in _GEOMETRIES]


def weight_spec(layer: nn.Module, dtype: torch.dtype | None) -> WeightSpec:
    """What a method is told of `layer`. `dtype` None means the weight's own, or float32 beside half."""
    weight, geometry = layer.weight, geometry_of(layer)
    assert isinstance(weight, Tensor) and geometry is not None
    down_shape, up_shape = geometry.factor_shapes(layer)
    rows, columns = geometry.to_matrix(weight).shape
    own = torch.float32 if weight.dtype in _COARSE else weight.dtype
    return WeightSpec(tuple(weight.shape), (rows, columns), down_shape, up_shape, dtype or own, weight.device)


@dataclass(frozen=True)
class Base:
    """A frozen layer as its adapters see it in the forward pass."""

    layer: nn.Module
    geometry: type[Geometry]

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor | None:
        """See `Geometry.low_rank`."""
        return self.geometry.low_rank(self.layer, x, A, B, scale)
