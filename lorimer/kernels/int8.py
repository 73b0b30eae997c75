"""The product with a frozen weight in 8-bit integers, where a base model need not be exact.

    y = W x + b  ~  s_x · s_W · (q(W) q(x)) + b        s_W one scale per output channel, s_x one per row of x
    dx = W^T g   ~  s_g · s_V · (q(W^T) q(g))          s_V one scale per input channel, s_g one per row of g

q(t) = round(t / s), s = max|t| / 127 over the row: symmetric, nothing is clipped, an entry is off by at most
s / 2. So for a row x and an output channel w, both of length n, whatever their values:

    |y - (w·x + b)| <= s_x/2 · |w|_1 + s_w/2 · |x|_1 + n · s_x · s_w / 4          (`error_bound`)

and about sqrt((s_x² |w|² + s_w² |x|²) / 12) in root mean square (`expected_error`). Processors without VNNI
instructions add pairs of products in 16 bits, which 127 levels would overflow: there weights have 64
(`weight_levels`), and s_W is twice as large.

One entry that towers over its row takes the levels from all others. The gradient at a vocabulary's scores is
such a row: -1 for the right word, thousandths for ten thousands of others, whose sum counts. So a row longer
than `LONG` is cut into blocks with scales of their own, and the tower spoils its block only. Measured on
softmax gradients over 49,152 words, the error of dx fell from 43 to 75 % of its norm to 1 to 7 %.

Row scales for activations and gradients are those of ZeroQuant (Yao et al. 2022, arXiv 2206.01861), products
in both directions those of SwitchBack (Wortsman et al. 2023, arXiv 2304.13013). W^T is quantised anew, by its
own rows, so that its scales too are a factor of the result and not another pass over g.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorimer.kernels.precision import compute_dtype, own_precision

LEVELS = 127
FEWER_LEVELS = 64  # 2 · 255 · 64 < 2^15
LONG, BLOCK = 4096, 512  # columns
_SMALLEST = torch.finfo(torch.float32).tiny  # what a row of zeros is divided by
_CUDA_ROWS, _CUDA_MULTIPLE = 32, 8  # torch._int_mm on CUDA: more than 16 rows, sizes in multiples of 8


def quantise_rows(t: Tensor, levels: int = LEVELS) -> tuple[Tensor, Tensor]:
    """(codes, scales) with t ~ codes · scales: int8 as t (rows, columns), float32 (rows, 1).

    NaN or infinity in a row make its scale so, and with it all that is computed from the row.
    """
    t = t.float()
    scales = torch.maximum(t.amax(1, keepdim=True), -t.amin(1, keepdim=True)).div_(levels)
    inverse = scales.clamp_min(_SMALLEST).reciprocal_()
    codes = (t * inverse).round_().to(torch.int8, memory_format=torch.contiguous_format)
    return codes, scales


def column_blocks(t: Tensor) -> Iterator[Tensor]:
    """The parts of the rows of t (rows, columns) that have scales of their own."""
    columns = t.shape[1]
    return iter(t.split(BLOCK if columns > LONG else max(columns, 1), dim=1))


@dataclass(frozen=True)
class Int8Block:
    """Some columns of a matrix (rows, columns) = codes · scales, made to be multiplied with many inputs.

    Attributes:
        codes: int8, transposed (columns, rows); or what oneDNN made of that, where `packed`.
        scales: float32 (rows,).
    """

    codes: Tensor
    scales: Tensor
    packed: bool

    @staticmethod
    def of(matrix: Tensor, packed: bool) -> Int8Block:
        codes, scales = quantise_rows(matrix, weight_levels(matrix.device))
        codes = torch.ops.onednn.qlinear_prepack(codes, None) if packed else codes.t()
        return Int8Block(codes, scales.view(-1), packed)

    def multiply(self, x: Tensor) -> Tensor:
        """x M^T, float32 (n, rows) from x (n, columns)."""
        codes, scales = quantise_rows(x)
        product = self._packed_product(codes) if self.packed else self._plain_product(codes)
        return product.mul_(scales)

    def _packed_product(self, codes: Tensor) -> Tensor:
        # Bytes around 128: where the processor has no AMX, oneDNN has no kernel for signed ones and takes a
        # loop that is a thousand times slower.
        unsigned = codes.view(torch.uint8).bitwise_xor_(128)
        no_offsets = torch.zeros_like(self.scales, dtype=torch.long)
        source, weight = (unsigned, 1.0, 128), (self.codes, self.scales, no_offsets)
        as_float32: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qlinear_pointwise(*source, *weight, None, *as_float32)

    def _plain_product(self, codes: Tensor) -> Tensor:
        n = len(codes)
        if codes.is_cuda and n < _CUDA_ROWS:
            codes = F.pad(codes, (0, 0, 0, _CUDA_ROWS - n))
        return torch._int_mm(codes, self.codes)[:n] * self.scales


@dataclass(frozen=True)
class Int8Matrix:
    """A whole matrix (rows, columns), in blocks of columns."""

    blocks: tuple[Int8Block, ...]

    @staticmethod
    def of(matrix: Tensor) -> Int8Matrix:
        packed = has_packed_product(matrix.device)
        return Int8Matrix(tuple(Int8Block.of(part, packed) for part in column_blocks(matrix.detach())))

    def multiply(self, x: Tensor) -> Tensor:
        """x M^T, float32 (..., rows) from x (..., columns)."""
        first, *others = zip(self.blocks, column_blocks(x.reshape(-1, x.shape[-1])), strict=True)
        product = first[0].multiply(first[1])
        for block, part in others:
            product += block.multiply(part)
        # Not `view`: autograd forbids to change a view in place, which is how an adapter adds its update.
        return torch.ops.aten._unsafe_view(product, [*x.shape[:-1], product.shape[1]])


def has_packed_product(device: torch.device) -> bool:
    """Whether oneDNN's product with a repacked weight is there; else it is `torch._int_mm`."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops, "onednn")


def weight_levels(device: torch.device) -> int:
    """How many levels on each side of zero a weight may use for its products to be summed without loss."""
    return FEWER_LEVELS if device.type == "cpu" and _overflows() else LEVELS


@cache
def _overflows() -> bool:
    """Whether oneDNN, on this processor, loses what goes beyond 16 bits in a sum of two products."""
    if not has_packed_product(torch.device("cpu")):
        return False
    largest = torch.full((16, 64), LEVELS, dtype=torch.int8)
    weight = torch.ops.onednn.qlinear_prepack(largest, None)
    product = Int8Block(weight, torch.ones(16), packed=True)._packed_product(largest.clone())
    return bool((product != 64 * LEVELS**2).any())


def fits(weight: Tensor) -> bool:
    """Whether the device of `weight` (out, in) can multiply with a matrix of this size in int8."""
    return not weight.is_cuda or all(size % _CUDA_MULTIPLE == 0 for size in weight.shape)


@dataclass(frozen=True)
class Int8Weight:
    """A weight (out, in) for the output, and its transpose (in, out) for the gradient."""

    forward: Int8Matrix
    backward: Int8Matrix

    @staticmethod
    def of(weight: Tensor) -> Int8Weight:
        return Int8Weight(Int8Matrix.of(weight), Int8Matrix.of(weight.t()))


def int8_linear(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """y (..., out) ~ x W^T + b from x (..., in), a frozen weight (out, in) and bias (out,).

    The result has the type that `F.linear` would give. Nothing is kept for the backward pass.
    """
    y: Tensor = _Int8Linear.apply(x, bias, weight, compute_dtype(x))
    return y


class _Int8Linear(Function):
    """x W^T + b in integers, and the way back of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Int8Weight, dtype: torch.dtype) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        with own_precision(x):
            y = weight.forward.multiply(x)
            return (y if bias is None else y.add_(bias)).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        wants_x, wants_bias, *_ = ctx.needs_input_grad
        with own_precision(g):
            dx = ctx.weight.backward.multiply(g).to(ctx.dtype) if wants_x else None
            dbias = g.reshape(-1, g.shape[-1]).sum(0) if wants_bias else None
        return dx, dbias, None, None


def error_bound(x: Tensor, weight: Tensor) -> Tensor:
    """What |y_int8 - y| cannot exceed, rounding of floats aside: (n, out) for x (n, in), weight (out, in)."""
    total = x.new_zeros(len(x), len(weight))
    for part, of_weight in zip(column_blocks(x), column_blocks(weight), strict=True):
        s_x, s_w = _scales(part, LEVELS), _scales(of_weight, weight_levels(weight.device)).T
        total += s_x * of_weight.abs().sum(1) / 2 + part.abs().sum(1, keepdim=True) * s_w / 2
        total += part.shape[1] * s_x * s_w / 4
    return total


def expected_error(x: Tensor, weight: Tensor) -> Tensor:
    """The root mean square of y_int8 - y where rounding errors are spread evenly: shapes as above."""
    total = x.new_zeros(len(x), len(weight))
    for part, of_weight in zip(column_blocks(x), column_blocks(weight), strict=True):
        s_x, s_w = _scales(part, LEVELS), _scales(of_weight, weight_levels(weight.device)).T
        total += s_x.square() * of_weight.square().sum(1)
        total += part.square().sum(1, keepdim=True) * s_w.square()
    return (total / 12).sqrt()


def _scales(t: Tensor, levels: int) -> Tensor:
    """(rows, 1): the scale of each row."""
    return t.abs().amax(1, keepdim=True) / levels
