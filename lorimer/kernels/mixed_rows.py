"""Another adapter for each row of a batch.

    output[i] += scales[k] · B[k] (A[k] x[i])        k = index[i], nothing where k = -1

The factors are gathered per row, which costs little beside the rows themselves, and two batched products
serve all rows (S-LoRA, arXiv 2311.03285, section 5, gathers inside its kernels).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorimer.kernels.precision import compute_dtype, own_precision, plain_ops_needed


def add_low_rank_rows(
    output: Tensor, x: Tensor, A: Tensor, B: Tensor, scales: Tensor, index: Tensor | None = None
) -> Tensor:
    """output (rows, ..., out) plus each row's own update, in place of `output` outside the compiler.

    x (rows, ..., in), A (n, rank, in), B (n, out, rank), scales (n,), index (rows,) of type long; without an
    index the row i has the factors i. `output` must be the fresh result of a layer, which nobody needs as it
    was.
    """
    dtype = compute_dtype(x)
    if not plain_ops_needed():
        changed: Tensor = _AddedRows.apply(output, x, A, B, scales, index, dtype)
        return changed
    with own_precision(x):
        a, b = _gathered(A, index, dtype), _gathered(B, index, dtype)
        hidden = _hidden(x.to(dtype), a, scales, index)
        return output + (hidden @ b.mT).view(output.shape).to(output.dtype)


class _AddedRows(Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scales: Tensor,
        index: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        with own_precision(x):
            a, b = _gathered(A, index, dtype), _gathered(B, index, output.dtype)
            hidden = _hidden(x.to(dtype), a, scales, index)
            if output.is_contiguous():
                _per_row(output).baddbmm_(hidden.to(output.dtype), b.mT)
            else:
                output.add_((hidden.to(output.dtype) @ b.mT).view(output.shape))
        ctx.mark_dirty(output)
        ctx.dtype, ctx.shape = dtype, x.shape
        wants_A, wants_B = ctx.needs_input_grad[2:4]
        ctx.save_for_backward(x if wants_A else None, A, B, scales, index, hidden if wants_B else None)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, scales, index, hidden = ctx.saved_tensors
        _, wants_x, wants_A, wants_B = ctx.needs_input_grad[:4]
        dx = dA = dB = None
        with own_precision(g):
            rows = _per_row(g.to(ctx.dtype))
            dh = rows @ _gathered(B, index, ctx.dtype) * _per_row_scale(scales, index, ctx.dtype)
            if wants_x:
                dx = (dh @ _gathered(A, index, ctx.dtype)).view(ctx.shape)
            if wants_A:
                dA = _scattered(dh.mT @ _per_row(x.to(ctx.dtype)), index, A)
            if wants_B:
                dB = _scattered(rows.mT @ hidden, index, B)
        return g, dx, dA, dB, None, None, None


def _per_row(t: Tensor) -> Tensor:
    """(rows, ..., n) -> (rows, positions, n)"""
    return t.reshape(len(t), t.shape[1:-1].numel(), t.shape[-1])


def _hidden(x: Tensor, a: Tensor, scales: Tensor, index: Tensor | None) -> Tensor:
    """scales[k] · A[k] x of shape (rows, positions, rank)."""
    return (_per_row(x) @ a.mT) * _per_row_scale(scales, index, x.dtype)


def _per_row_scale(scales: Tensor, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    chosen = scales if index is None else scales[index.clamp(min=0)]
    return chosen.to(dtype)[:, None, None]


def _gathered(factors: Tensor, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The factor of each row, zero where the row has no adapter: not even the NaN of another's reaches it."""
    if index is None:
        return factors.to(dtype)
    chosen = factors[index.clamp(min=0)].to(dtype)
    return chosen.masked_fill_((index < 0)[:, None, None], 0.0)


def _scattered(gradients: Tensor, index: Tensor | None, factors: Tensor) -> Tensor:
    """The sum over rows of each adapter's gradients; rows without an adapter bring zeros."""
    if index is None:
        return gradients.to(factors.dtype)
    total = torch.zeros(factors.shape, dtype=gradients.dtype, device=factors.device)
    return total.index_add_(0, index.clamp(min=0), gradients)
