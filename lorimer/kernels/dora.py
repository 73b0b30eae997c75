"""DoRA: magnitude times direction, the direction moved by a low-rank update (arXiv 2402.09353).

    y = (m / n) · (W x + scale · B A drop(x)) + b        n = ||W + scale · B A|| per output channel

The norm is a constant in the backward pass (section 4.3 there). With dropout the base product sees the
whole input: PEFT gives it the dropped one too, at the price of a second base product. Both have the same
mean, ours less noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorimer.kernels.low_rank import Convolution, adapted_layer
from lorimer.kernels.maps import LinearMap
from lorimer.kernels.precision import own_precision


def row_norms(
    weight: Tensor, A: Tensor, B: Tensor, scale: float, weight_norms_squared: Tensor | None = None
) -> Tensor:
    """||W + scale · B A|| of each row, (out,), from the factors without forming B A.

        ||w + s b A||² = ||w||² + 2 s (w A^T) · b + s² (b (A A^T)) · b

    weight (out, ...), A (rank, ...) and B (out, rank, ...) are flattened to matrices. Computed and returned
    in at least float32, without gradient. `weight_norms_squared` (out,) spares the first term where it is
    known.
    """
    wide = torch.promote_types(torch.promote_types(weight.dtype, A.dtype), torch.float32)
    with torch.no_grad(), own_precision(weight):
        W, a, b = weight.flatten(1), A.flatten(1).to(wide), B.flatten(1).to(wide)
        squared = weight_norms_squared
        if squared is None:
            squared = torch.linalg.vector_norm(W, dim=1, dtype=wide).square()
        crossed = W.to(wide) @ a.t() * (2 * scale) + b @ (a @ a.t()) * scale**2
        # Rounding may take the norm of a row that the update all but cancels below zero.
        return (squared.to(wide) + (crossed * b).sum(1)).clamp_min(0.0).sqrt()


def dora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    magnitude: Tensor,
    scale: float,
    dropout: float = 0.0,
    weight_norms_squared: Tensor | None = None,
) -> Tensor:
    """y (..., out) from x (..., in), weight (out, in), A (rank, in), B (out, rank), magnitude (out,)."""
    norm = row_norms(weight, A, B, scale, weight_norms_squared)
    return adapted_layer(LinearMap(), x, weight, bias, A, B, scale, dropout, magnitude, norm)


def dora_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    magnitude: Tensor,
    scale: float,
    convolution: Convolution,
    dropout: float = 0.0,
    weight_norms_squared: Tensor | None = None,
) -> Tensor:
    """The same for a convolution, shapes as in `adapted_conv`; the norm is over all of an output channel's
    weights."""
    if x.dim() == len(convolution.stride) + 1:
        x = x[None]
        y = dora_conv(x, weight, bias, A, B, magnitude, scale, convolution, dropout, weight_norms_squared)
        return y[0]
    rows = (weight.transpose(0, 1), A.transpose(0, 1)) if convolution.transposed else (weight, A)
    norm = row_norms(*rows, B, scale, weight_norms_squared)
    return adapted_layer(convolution, x, weight, bias, A, B, scale, dropout, magnitude, norm)
