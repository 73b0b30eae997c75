"""Convolutions of one to three dimensions and their transposes, with any number of groups."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lorimer.kernels.low_rank import low_rank_conv2d
from lorimer.layers.geometry import Geometry


class ConvolutionGeometry(Geometry):
    """weight (out, in / groups, *kernel), as a matrix (out, in / groups · prod(kernel))."""

    @property
    def channel_axis(self) -> int:  # type: ignore[override]
        return -1 - len(self.layer.kernel_size)

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        kernel = self.layer.kernel_size
        return (self.layer.in_channels // self.layer.groups, *kernel), (1,) * len(kernel)

    def apply(self, weight: Tensor, bias: Tensor | None, input: Tensor, **options: Any) -> Tensor:
        output: Tensor = self.layer._conv_forward(input, weight, bias)
        return output

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float) -> Tensor | None:
        # With groups, factors would run once per group (groups · rank channels in between); the
        # grouped weight itself is small, so the weight path is the cheaper one.
        if self.layer.groups != 1 or not isinstance(self.layer, nn.Conv2d):
            return None
        return self.add_low_rank(self.output(x), x, A, B, scale, dropout)

    def add_low_rank(
        self, output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float
    ) -> Tensor | None:
        if self.layer.groups != 1 or not isinstance(self.layer, nn.Conv2d):
            return None
        return output + low_rank_conv2d(F.dropout(x, dropout), A, B, scale, self.layer).to(output.dtype)


class TransposedConvolutionGeometry(ConvolutionGeometry):
    """weight (in, out / groups, *kernel), as a matrix (out, in / groups · prod(kernel)): the rows of one
    group read that group's inputs alone."""

    def to_matrix(self, weight: Tensor) -> Tensor:
        groups = self.layer.groups
        by_group = weight.unflatten(0, (groups, -1)).transpose(1, 2)  # (groups, out / g, in / g, *kernel)
        return by_group.flatten(0, 1).flatten(1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        groups = self.layer.groups
        by_group = matrix.reshape(groups, -1, self.layer.in_channels // groups, *self.layer.kernel_size)
        return by_group.transpose(1, 2).flatten(0, 1)

    def apply(self, weight: Tensor, bias: Tensor | None, input: Tensor, **options: Any) -> Tensor:
        return _transposed(self.layer, weight, bias, input, **options)

    def low_rank(self, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float) -> Tensor | None:
        return None


_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _transposed(
    layer: Any, weight: Tensor, bias: Tensor | None, input: Tensor, output_size: list[int] | None = None
) -> Tensor:
    """A transposed convolution's forward with another weight and bias."""
    dimensions = len(layer.kernel_size)
    padding = layer._output_padding(
        input, output_size, layer.stride, layer.padding, layer.kernel_size, dimensions, layer.dilation
    )
    return _TRANSPOSED[dimensions](
        input, weight, bias, layer.stride, layer.padding, padding, layer.groups, layer.dilation
    )
