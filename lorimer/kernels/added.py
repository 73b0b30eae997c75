"""The low-rank update alone, added in place to the output of a layer that is none of our business.

    output += scale · B (A drop(x))

The base's own backward pass stays the base's: the gradient at the output goes on to it unchanged.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorimer.kernels.adapted import Call, FactorGradients, Gradients, masked, shape_only
from lorimer.kernels.precision import own_precision
from lorimer.kernels.rematerialise import Input


class AddedUpdate(Function):
    """output (..., out) is changed and returned; the factors as in `AdaptedLayer`."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, A: Tensor, B: Tensor, call: Call, input: Input | None
    ) -> Tensor:
        with own_precision(x):
            a, b = call.factors(A, B)
            z = x.to(call.dtype)
            hidden = call.companion.apply(masked(z, call.mask(z)), a)
            call.layer.lift_(output, hidden.to(output.dtype), b.to(output.dtype), call.scale)
        ctx.mark_dirty(output)
        ctx.call, ctx.shape = call, x.shape
        kept = () if input is None else input.tensors()
        ctx.save_for_backward(A, B, hidden if call.plan.keep_hidden else None, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        call: Call = ctx.call
        A, B, hidden, *kept = ctx.saved_tensors
        _, wants_x, wants_A, wants_B = ctx.needs_input_grad[:4]
        input = Input.of(kept) if kept else None
        with own_precision(g):
            update = FactorGradients(call, g.to(call.dtype), *call.factors(A, B), hidden, input)
            dx = update.dx(None, shape_only(ctx.shape, update.g, input)) if wants_x else None
            dA = update.dA() if wants_A else None
            dB = update.dB().view_as(B) if wants_B else None
        return g, dx, dA, dB, None, None
