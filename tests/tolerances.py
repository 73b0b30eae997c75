"""Every tolerance of the suite, with its reason. Where nothing is listed, equality is to the bit."""

from __future__ import annotations

import torch

# Two ways to the same layer output (live against merged, quick path against `adapt`), relative to the
# output's largest entry. The sums are taken in another order, so a few units of rounding of the
# narrowest type that the result passes through: eps is 2e-16, 1e-7, 1e-3 and 8e-3.
SAME_OUTPUT = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}

# Gradients through the quick path against autograd through `adapt`, in float64.
SAME_GRADIENT = 1e-11


def relative_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """Largest difference relative to the largest entry."""
    scale = max(left.abs().max().item(), right.abs().max().item(), 1e-30)
    return (left.double() - right.double()).abs().max().item() / scale
