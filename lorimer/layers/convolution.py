"""Convolutions of one to three dimensions and their transposes, with any number of groups."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lorimer.kernels.dora import dora_conv
from lorimer.kernels.low_rank import Convolution, adapted_conv, add_low_rank_conv
from lorimer.layers.geometry import Geometry

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


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

    def low_rank(
        self,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: float,
        dropout: float = 0.0,
        magnitude: Tensor | None = None,
    ) -> Tensor | None:
        # With groups, factors would run once per group (groups · rank channels in between); the
        # grouped weight itself is small, so the weight path is the cheaper one.
        if self.layer.groups != 1:
            return None
        if not self.layer.plain_forward:
            return super().low_rank(x, A, B, scale, dropout, magnitude)
        (x, convolution), A = self._movement(x), self._filters(A)
        weight, bias = self.weight, self.bias
        if magnitude is None:
            return adapted_conv(x, weight, bias, A, B, scale, convolution, dropout)
        return dora_conv(x, weight, bias, A, B, magnitude, scale, convolution, dropout)

    def add_low_rank(
        self, output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0
    ) -> Tensor | None:
        if self.layer.groups != 1:
            return None
        x, convolution = self._movement(x)
        return add_low_rank_conv(output, x, self._filters(A), B, scale, convolution, dropout)

    def _movement(self, x: Tensor) -> tuple[Tensor, Convolution]:
        """The input, padded where the kernel cannot do it, and how the layer moves over it."""
        layer, padding = self.layer, self.layer.padding
        uneven = isinstance(padding, str) and len(set(layer._reversed_padding_repeated_twice)) > 1
        if layer.padding_mode != "zeros" or uneven:
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), 0
        elif isinstance(padding, str):
            padding = layer._reversed_padding_repeated_twice[0]
        if isinstance(padding, int):
            padding = (padding,) * len(layer.kernel_size)
        return x, Convolution(layer.stride, padding, layer.dilation)

    def _filters(self, A: Tensor) -> Tensor:
        """A in the order of axes that the layer's own weight has."""
        return A


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

    def _movement(self, x: Tensor) -> tuple[Tensor, Convolution]:
        layer = self.layer
        return x, Convolution(layer.stride, layer.padding, layer.dilation, True, layer.output_padding)

    def _filters(self, A: Tensor) -> Tensor:
        return A.transpose(0, 1)  # (in, rank, *kernel)


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
