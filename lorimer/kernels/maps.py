"""The linear maps that layers apply: what the low-rank kernels need of a Linear and of a convolution.

A map knows its product, the product's two gradients, and the 1 x 1 product that lifts `rank` channels to the
layer's own. B stands as a matrix (out, rank) throughout; A and the weight have the layer's own shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class LayerMap(Protocol):
    """y = W x, and what its low-rank companion scale · B (A x) is made of."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's output for `x`."""

    def sizes(self, x: Tensor, weight: Tensor) -> tuple[int, int, int]:
        """(positions, rows, columns): so many products with a matrix (rows, columns)."""

    def row_length(self, x: Tensor) -> int:
        """How many neighbouring entries of x belong together: a token's features, a channel's pixels."""

    def input_gradient(self, g: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """The gradient of the input, shaped as `like`, whose values do not matter."""

    def add_input_gradient_(self, dx: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """dx += the gradient of the input, in place."""

    def weight_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of `weight`, whose values do not matter."""

    def bias_gradient(self, g: Tensor) -> Tensor:
        """The gradient of the bias (out,): the sum over all positions."""

    def lift(self, hidden: Tensor, B: Tensor) -> Tensor:
        """B hidden, as wide as the layer's output."""

    def lift_(self, y: Tensor, hidden: Tensor, B: Tensor, scale: float) -> Tensor:
        """y += scale · B hidden, without a temporary where y's memory lies in order."""

    def hidden_gradient(self, g: Tensor, B: Tensor) -> Tensor:
        """B^T g: the gradient that reaches the rank-sized channels."""

    def lift_gradient(self, g: Tensor, hidden: Tensor) -> Tensor:
        """The gradient of B (out, rank)."""

    def sum_of_products(self, g: Tensor, y: Tensor) -> Tensor:
        """The sum of g · y over all positions, (out,)."""

    def merged(self, weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        """W + scale · B A in the weight's shape."""

    def scaled(self, weight: Tensor, gain: Tensor) -> Tensor:
        """The weight with output channel o multiplied by gain[o]."""


@dataclass(frozen=True)
class LinearMap:
    """x (..., in), weight (out, in), A (rank, in), hidden (..., rank)."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def sizes(self, x: Tensor, weight: Tensor) -> tuple[int, int, int]:
        return x.shape[:-1].numel(), *weight.shape

    def row_length(self, x: Tensor) -> int:
        return x.shape[-1]

    def input_gradient(self, g: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return g @ weight

    def add_input_gradient_(self, dx: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        return self.lift_(dx, g, weight.t(), 1.0)

    def weight_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return _flat(g).t() @ _flat(x)

    def bias_gradient(self, g: Tensor) -> Tensor:
        return _flat(g).sum(0)

    def lift(self, hidden: Tensor, B: Tensor) -> Tensor:
        return F.linear(hidden, B)

    def lift_(self, y: Tensor, hidden: Tensor, B: Tensor, scale: float) -> Tensor:
        if not y.is_contiguous():
            return y.add_(self.lift(hidden, B), alpha=scale)
        y.view(-1, y.shape[-1]).addmm_(_flat(hidden), B.t(), alpha=scale)
        return y

    def hidden_gradient(self, g: Tensor, B: Tensor) -> Tensor:
        return g @ B

    def lift_gradient(self, g: Tensor, hidden: Tensor) -> Tensor:
        # The rank-sized factor transposed, not the wide one: twice as fast in MKL.
        return (_flat(hidden).t() @ _flat(g)).t()

    def sum_of_products(self, g: Tensor, y: Tensor) -> Tensor:
        return _summed_products(_flat(g), _flat(y), axes=[0])

    def merged(self, weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        return torch.addmm(weight, B, A, alpha=scale)

    def scaled(self, weight: Tensor, gain: Tensor) -> Tensor:
        return weight * gain[:, None].to(weight.dtype)


def _flat(t: Tensor) -> Tensor:
    """(..., n) -> (tokens, n)"""
    return t.reshape(-1, t.shape[-1])


def _summed_products(g: Tensor, y: Tensor, axes: list[int]) -> Tensor:
    """The sum of g · y over `axes`, in at least float32, by pieces of the first axis: small enough for a
    processor's cache, large enough for a GPU, and never another tensor of their size."""
    entries = 2**18 if g.device.type == "cpu" else 2**24
    length = max(entries // max(g.shape[1:].numel(), 1), 1)
    wide = torch.promote_types(g.dtype, torch.float32)
    pieces = zip(g.split(length), y.split(length), strict=True)
    return torch.stack([(left * right).sum(axes, dtype=wide) for left, right in pieces]).sum(0)


@dataclass(frozen=True)
class Convolution:
    """How an ungrouped convolution moves over x (batch, in, *space); its length is the number of spatial
    axes.

    Weight (out, in, *kernel), A (rank, in, *kernel); transposed: weight (in, out, *kernel), A (in, rank,
    *kernel). Other padding than zeros is put around x beforehand.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = (0, 0, 0)

    def _geometry(self) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
        output_padding = list(self.output_padding)[: len(self.stride)]
        return list(self.stride), list(self.padding), list(self.dilation), self.transposed, output_padding, 1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.aten.convolution(x, weight, bias, *self._geometry())

    def sizes(self, x: Tensor, weight: Tensor) -> tuple[int, int, int]:
        outputs = 1  # near enough: the kernel's overhang is left out
        for axis, stride in enumerate(self.stride):
            outputs *= x.shape[2 + axis] * stride if self.transposed else -(-x.shape[2 + axis] // stride)
        channels, kernel = x.shape[1], weight.shape[2:].numel()
        rows = weight.shape[1] if self.transposed else weight.shape[0]
        return len(x) * outputs, rows, channels * kernel

    def row_length(self, x: Tensor) -> int:
        return x.shape[2:].numel()

    def input_gradient(self, g: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return self._backward(g, like, weight, [True, False, False])[0]

    def add_input_gradient_(self, dx: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        return dx.add_(self.input_gradient(g, weight, dx))

    def weight_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._backward(g, x, weight, [False, True, False])[1]

    def _backward(self, g: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
        return torch.ops.aten.convolution_backward(g, x, weight, None, *self._geometry(), wanted)

    def bias_gradient(self, g: Tensor) -> Tensor:
        return g.sum([axis for axis in range(g.dim()) if axis != 1])

    def lift(self, hidden: Tensor, B: Tensor) -> Tensor:
        return (B @ hidden.flatten(2)).unflatten(2, hidden.shape[2:])

    def lift_(self, y: Tensor, hidden: Tensor, B: Tensor, scale: float) -> Tensor:
        if y.is_contiguous():
            y.flatten(2).baddbmm_(B.expand(len(y), *B.shape), hidden.flatten(2), alpha=scale)
            return y
        pixels = y.movedim(1, -1)
        if pixels.is_contiguous():  # channels last: a matrix (pixels, out)
            pixels.view(-1, len(B)).addmm_(_flat(hidden.movedim(1, -1)), B.t(), alpha=scale)
            return y
        return y.add_(self.lift(hidden, B), alpha=scale)

    def hidden_gradient(self, g: Tensor, B: Tensor) -> Tensor:
        return self.lift(g, B.t())

    def lift_gradient(self, g: Tensor, hidden: Tensor) -> Tensor:
        return torch.bmm(g.flatten(2), hidden.flatten(2).transpose(1, 2)).sum(0)

    def sum_of_products(self, g: Tensor, y: Tensor) -> Tensor:
        return _summed_products(g, y, axes=[axis for axis in range(g.dim()) if axis != 1])

    def merged(self, weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        if self.transposed:  # W and A as (in, out or rank, kernel)
            update = B @ A.flatten(2)
            return torch.add(weight, update.view_as(weight), alpha=scale)
        return torch.addmm(weight.flatten(1), B, A.flatten(1), alpha=scale).view_as(weight)

    def scaled(self, weight: Tensor, gain: Tensor) -> Tensor:
        channels = (1, -1) if self.transposed else (-1, 1)
        return weight * gain.to(weight.dtype).view(*channels, *[1] * (weight.dim() - 2))
