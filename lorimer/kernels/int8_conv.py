"""The product of `int8.py` for convolutions: one scale per output channel and one per picture of the batch.

A sum of a convolution runs over channels and pixels, so a picture is one row: the bound of `int8.error_bound`
holds for each patch with its picture's scale in place of its own. The gradient of an undilated convolution of
stride 1 is the convolution with the filters turned around and their channels exchanged, padded by k - 1 - p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorimer.kernels.int8 import has_packed_product, quantise_rows, weight_levels
from lorimer.kernels.precision import compute_dtype, own_precision


@dataclass(frozen=True)
class Int8Filters:
    """Filters (out, in, k_h, k_w) = codes · scales, packed by oneDNN; padding (height, width) with zeros."""

    codes: Tensor
    scales: Tensor
    padding: list[int]

    @staticmethod
    def of(filters: Tensor, padding: list[int]) -> Int8Filters:
        codes, scales = quantise_rows(filters.detach().flatten(1), weight_levels(filters.device))
        codes, scales = codes.view(filters.shape), scales.view(-1)
        packed = torch.ops.onednn.qconv_prepack(codes, scales, 1.0, 128, [1, 1], padding, [1, 1], 1, None)
        return Int8Filters(packed, scales, padding)

    def multiply(self, x: Tensor) -> Tensor:
        """The convolution, float32 (n, out, h', w') from x (n, in, h, w), in x's memory format."""
        codes, scales = quantise_rows(x.flatten(1))
        unsigned = codes.view(torch.uint8).bitwise_xor_(128).view(x.shape)  # as in `Int8Block`
        source = unsigned.contiguous(memory_format=torch.channels_last)
        no_offsets = torch.zeros_like(self.scales, dtype=torch.long)
        moves = ([1, 1], self.padding, [1, 1], 1)
        product = torch.ops.onednn.qconv2d_pointwise(
            *(source, 1.0, 128, self.codes, self.scales, no_offsets, None),
            *moves,
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        form = torch.channels_last if last else torch.contiguous_format
        y = torch.empty(product.shape, dtype=torch.float32, memory_format=form)
        return torch.mul(product, scales[:, :, None, None], out=y)


def fits_convolution(layer: nn.Conv2d) -> bool:
    """Whether `int8_conv` can stand in for the layer, on its device, in both directions."""
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str) or not has_packed_product(layer.weight.device):
        return False
    return all(p < k for p, k in zip(layer.padding, layer.kernel_size, strict=True))


@dataclass(frozen=True)
class Int8Convolution:
    """A convolution's filters for the output, and turned around for the gradient."""

    forward: Int8Filters
    backward: Int8Filters

    @staticmethod
    def of(filters: Tensor, padding: tuple[int, ...]) -> Int8Convolution:
        around = [k - 1 - p for k, p in zip(filters.shape[2:], padding, strict=True)]
        turned = filters.detach().flip(2, 3).transpose(0, 1)
        return Int8Convolution(Int8Filters.of(filters, list(padding)), Int8Filters.of(turned, around))


def int8_conv(x: Tensor, filters: Int8Convolution, bias: Tensor | None = None) -> Tensor:
    """y (n, out, h', w') from x (n, in, h, w) and bias (out,), in the type that `F.conv2d` would give."""
    y: Tensor = _Int8Conv.apply(x, bias, filters, compute_dtype(x))
    return y


class _Int8Conv(Function):
    """The convolution in integers, and the way back of its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, filters: Int8Convolution, dtype: torch.dtype
    ) -> Tensor:
        ctx.filters, ctx.dtype = filters, x.dtype
        with own_precision(x):
            y = filters.forward.multiply(x)
            return (y if bias is None else y.add_(bias[:, None, None])).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        wants_x, wants_bias, *_ = ctx.needs_input_grad
        with own_precision(g):
            dx = ctx.filters.backward.multiply(g).to(ctx.dtype) if wants_x else None
            dbias = g.sum((0, 2, 3)) if wants_bias else None
        return dx, dbias, None, None
