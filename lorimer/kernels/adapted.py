"""A layer and its low-rank update as one step of autograd.

    y = c · (W x + scale · B A drop(x)) + b          c = 1 for LoRA, magnitude / norm for DoRA

    dh = scale · (c B)^T g          the gradient at A drop(x), rank channels wide
    dA = dh drop(x)^T               dB = scale · c · g h^T with h = A drop(x)
    dx = (c W)^T g + drop(A^T dh)   dm = sum of g · (y - b) / (c · norm)

LoRA is equation 3 of arXiv 2106.09685, DoRA equations 5 and 11 of arXiv 2402.09353, whose norm is a
constant in the backward pass. c multiplies weights, not activations: there are fewer of them. Of the
input's size we keep the input, or what autograd keeps of it anyway (`rematerialise`); of the output's size
only what DoRA's magnitude needs, the output itself (`kept_output`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorimer.kernels.dropout import dropout_mask
from lorimer.kernels.kept_output import keep_output, output_if_unchanged
from lorimer.kernels.maps import LayerMap
from lorimer.kernels.plan import Plan
from lorimer.kernels.precision import own_precision
from lorimer.kernels.rematerialise import Input

Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Call:
    """One application of a kernel, beside its tensors.

    Attributes:
        companion: the map by which A meets the input: the layer's own, or one that drops the input itself.
        dtype: what is computed in; the tensors come in their own types.
        casts_weight: autocast is on; without it a weight of another type than the input's is an error.
        seed: draws the dropout mask; None where nothing is dropped, or by the companion.
    """

    layer: LayerMap
    companion: LayerMap
    scale: float
    dtype: torch.dtype
    casts_weight: bool
    dropout: float
    seed: int | None
    plan: Plan

    def mask(self, x: Tensor) -> Tensor | None:
        """The dropout mask of this call for x, the same one each time; None where there is none to apply."""
        if self.seed is None:
            return None
        return dropout_mask(x, self.layer.row_length(x), self.dropout, self.seed)

    def cast(self, tensor: Tensor) -> Tensor:
        """A tensor of the layer's in the type that is computed in."""
        return tensor.to(self.dtype) if self.casts_weight else tensor

    def factors(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """A in its own shape and B as a matrix (out, rank), in the type that is computed in."""
        return A.to(self.dtype), B.flatten(1).to(self.dtype)

    def weight(self, W: Tensor, A: Tensor, B: Tensor, gain: Tensor | None, merge: bool) -> Tensor:
        """c · W, or c · (W + scale · B A)."""
        W = self.cast(W)
        if merge:
            W = self.layer.merged(W, A, B, self.scale)
        return W if gain is None else self.layer.scaled(W, gain)

    def product(
        self, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, gain: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(y, h) with h = A drop(x), None where the update is merged."""
        x, merge = x.to(self.dtype), self.plan.merge_forward
        y = self.layer.apply(x, self.weight(W, A, B, gain, merge), None if bias is None else self.cast(bias))
        if merge:
            return y, None
        hidden = self.companion.apply(masked(x, self.mask(x)), A)
        return self.layer.lift_(y, hidden, with_gain(B, gain), self.scale), hidden


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x · mask."""
    return x if mask is None else x * mask


def with_gain(B: Tensor, gain: Tensor | None) -> Tensor:
    """B (out, rank) with row o multiplied by gain[o]."""
    return B if gain is None else B * gain[:, None].to(B.dtype)


class FactorGradients:
    """The gradients of the update's parts, each computed when asked for and what they share only once.

    Scales per row and column of the input (see `Input`) meet the rank-sized side of each product.
    """

    def __init__(
        self, call: Call, g: Tensor, A: Tensor, B: Tensor, hidden: Tensor | None, input: Input | None
    ) -> None:
        self.call, self.layer, self.g, self.A, self.B = call, call.companion, g, A, B
        self._hidden, self._input = hidden, input
        self._dh: Tensor | None = None
        self._core: Tensor | None = None
        self._mask: Tensor | None = None

    def dh(self) -> Tensor:
        """The gradient at the hidden, (..., rank) or (batch, rank, *space)."""
        if self._dh is None:
            self._dh = self.layer.hidden_gradient(self.g, self.B) * self.call.scale
        return self._dh

    def dA(self) -> Tensor:
        rows, columns = self.input.rows, self.input.columns
        dh = self.dh() if rows is None else self.dh() * rows
        dA = self.layer.weight_gradient(dh, self.core(), self.A)
        return dA if columns is None else dA * columns

    def dB(self) -> Tensor:
        return self.layer.lift_gradient(self.g, self.hidden()) * self.call.scale

    def dx(self, dx: Tensor | None, like: Tensor) -> Tensor:
        """dx + drop(A^T dh), in place of dx."""
        if dx is not None and self.call.seed is None:
            return self.layer.add_input_gradient_(dx, self.dh(), self.A)
        through = self.layer.input_gradient(self.dh(), self.A, like)
        mask = self._mask_of(through)
        if mask is None:
            return through
        return through.mul_(mask) if dx is None else dx.addcmul_(through, mask)

    def hidden(self) -> Tensor:
        """What A made of the input: kept, or had again."""
        if self._hidden is not None:
            return self._hidden
        rows, columns = self.input.rows, self.input.columns
        hidden = self.layer.apply(self.core(), self.A if columns is None else self.A * columns)
        return hidden if rows is None else hidden * rows

    def core(self) -> Tensor:
        """The dropped input without its scales."""
        if self._core is None:
            core = self.input.core().to(self.call.dtype)
            self._core = masked(core, self._mask_of(core))
        return self._core

    def _mask_of(self, x: Tensor) -> Tensor | None:
        if self._mask is None:
            self._mask = self.call.mask(x)
        return self._mask

    @property
    def input(self) -> Input:
        assert self._input is not None, "the input is kept wherever it is needed"
        return self._input


def shape_only(shape: torch.Size, g: Tensor, input: Input | None) -> Tensor:
    """A tensor of the layer input's shape whose values do not matter, without memory of its own."""
    if input is not None and input.full[0].dtype == g.dtype:
        return input.full[0]
    return g.new_empty(1).expand(shape)


def dora_gain(magnitude: Tensor, norm: Tensor) -> Tensor:
    """c (out,) = magnitude / norm in at least float32; 1 where the row is zero and has no direction to scale.

    Kept just off zero, so that the magnitude's gradient, which is had from c · z, does not vanish with c.
    """
    wide = torch.promote_types(magnitude.dtype, torch.float32)
    least = 1e-20 if magnitude.dtype != torch.float16 else 2.0**-14
    gain = torch.where(norm > 0, magnitude.to(wide) / norm.to(wide), 1.0)
    return torch.where(gain.abs() < least, least, gain)


class AdaptedLayer(Function):
    """The layer, its update and, where a magnitude is given, DoRA's gain.

    `input` is the form in which x is kept, None where the backward pass does not need it. Like every tensor
    it is handed to `save_for_backward` and to nothing else, so that torch decides how long it lives.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        magnitude: Tensor | None,
        norm: Tensor | None,
        call: Call,
        input: Input | None,
    ) -> Tensor:
        gain = None if magnitude is None or norm is None else dora_gain(magnitude, norm)
        with own_precision(x):
            y, hidden = call.product(x, weight, bias, *call.factors(A, B), gain)
        # F.linear gives a view of a matrix, and torch lets nobody change a view from here in place (ReLU).
        y = torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y
        ctx.call, ctx.shape = call, x.shape
        hidden = hidden if call.plan.keep_hidden else None
        output = keep_output(ctx, y) if ctx.needs_input_grad[5] else None
        kept = () if input is None else input.tensors()
        ctx.save_for_backward(weight, bias, A, B, gain, norm, hidden, output, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        with own_precision(g):
            return _adapted_layer_backward(ctx, g)


def _adapted_layer_backward(ctx: Any, g: Tensor) -> Gradients:
    call: Call = ctx.call
    weight, bias, A, B, gain, norm, hidden, output, *kept = ctx.saved_tensors
    wants_x, wants_weight, wants_bias, wants_A, wants_B, wants_magnitude = ctx.needs_input_grad[:6]
    input = Input.of(kept) if kept else None
    a, b = call.factors(A, B)
    update = FactorGradients(call, g, a, with_gain(b, gain), hidden, input)
    dx = dweight = dbias = dA = dB = dmagnitude = None
    if wants_x:
        like, merge = shape_only(ctx.shape, g, input), call.plan.merge_backward
        dx = call.layer.input_gradient(g, call.weight(weight, a, b, gain, merge), like)
        dx = dx if merge else update.dx(dx, like)
    if wants_weight:
        dweight = call.layer.weight_gradient(g, update.input.whole().to(call.dtype), weight)
        dweight = dweight if gain is None else call.layer.scaled(dweight, gain)
    if wants_bias:
        dbias = call.layer.bias_gradient(g)
    if wants_A:
        dA = update.dA()
    if wants_B:
        dB = with_gain(update.dB(), gain).view_as(B)
    if wants_magnitude:
        y = output_if_unchanged(ctx, output)
        if y is None:
            y, _ = call.product(update.input.whole(), weight, bias, a, b, gain)
        dmagnitude = _magnitude_gradient(call, g, y, bias, gain, norm)
    return dx, dweight, dbias, dA, dB, dmagnitude, None, None, None


def _magnitude_gradient(
    call: Call, g: Tensor, y: Tensor, bias: Tensor | None, gain: Tensor, norm: Tensor
) -> Tensor:
    """dm (out,) = sum over positions of g · (y - b) / (c · norm); 0 for a row without a direction.

    Beside a bias nothing is left of z where c is at the edge of y's precision. There the gradient is 0: noise
    divided by next to nothing would be worse.
    """
    known = norm > 0
    total = call.layer.sum_of_products(g, y).to(gain.dtype)
    if bias is not None:
        total = total - bias * call.layer.bias_gradient(g)
        known = known & (gain.abs() > torch.finfo(y.dtype).eps ** 0.5)
    return torch.where(known, total / (gain * norm), 0.0)
