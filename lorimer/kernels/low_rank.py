"""The low-rank product and its application, as plain differentiable tensor functions.

    change(x) = scale · B (A x)        never forming B·A, whose size is that of the frozen weight

The scale is put on the rank-sized intermediate, the smallest tensor there is. Factors are cast to
the input's type: with float32 factors beside a half-precision base this is what autocast does too.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def low_rank_product(A: Tensor, B: Tensor, scale: float) -> Tensor:
    """scale · B·A of shape (out, in), from A (rank, in) and B (out, rank)."""
    return (B * scale) @ A


def low_rank_linear(x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """scale · x A^T B^T of shape (..., out), from x (..., in), A (rank, in) and B (out, rank)."""
    hidden = F.linear(x, A.to(x.dtype)) * scale
    return F.linear(hidden, B.to(hidden.dtype))


def low_rank_conv2d(x: Tensor, A: Tensor, B: Tensor, scale: float, layer: nn.Conv2d) -> Tensor:
    """The same for an ungrouped convolution: `rank` filters A (rank, in, k_h, k_w) that move as the
    layer's own do, then a 1 x 1 convolution B (out, rank, 1, 1)."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0, 0)
    hidden = F.conv2d(x, A.to(x.dtype), None, layer.stride, padding, layer.dilation) * scale
    return F.conv2d(hidden, B.to(hidden.dtype))
