"""Which way through the low-rank product is the cheapest for the sizes at hand.

The update scale · B A can be applied by its factors, position by position, or be merged into the weight for
the moment of one product. Multiplications, for n positions (tokens, pixels) and rank r:

    down   h = A x        n · r · in        needed once, in the forward or the backward pass
    lift   y += B h       n · r · out       or merged: r · in · out
    back   dx += A^T dh   n · r · in        or merged: r · in · out

So merging spares multiplications as soon as n > in forward and n > out backward. On a processor where thin
products are bound by memory the two ways take the same time over a wide range around that point (576 x 576
and 576 x 1536, 1,024 tokens, rank 16: no difference beyond the noise of 5 %), so the count decides. Merging
rounds the update to the weight's precision, harmless in float32 and float64 and not in half precision, and
it cannot see a dropped input.

On a GPU the plain ways are a pass over the activations for each product, as good as it gets, but for
dropout: there a mask is written and read, and the dropped input too. Triton's kernels (`triton_products`)
draw the mask as they read.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch

# Wider thin sides leave a GPU's registers, or the 99 KB that a block shares on those of desktops.
MOST_FUSED_RANK = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64}


@dataclass(frozen=True)
class Plan:
    """merge_forward, merge_backward: whether W + scale · B A is formed for the output, for the input's
    gradient. keep_hidden: whether A x is kept for the backward pass, else computed there."""

    merge_forward: bool
    merge_backward: bool
    keep_hidden: bool


def choose(
    positions: int,
    rows: int,
    columns: int,
    rank: int,
    *,
    mergeable: bool,
    trains_B: bool = False,
    keeps_input: bool = False,
) -> Plan:
    """The cheapest plan for `positions` products with a weight (rows, columns) and factors of `rank`.

    Args:
        mergeable: the sum W + B A loses nothing by rounding and sees the whole input.
        trains_B: the backward pass will ask for B's gradient, and so for A x.
        keeps_input: the input is kept for the backward pass in any case.
    """
    alone = trains_B and not keeps_input  # without the input, A x cannot be had again
    factors = positions * (rows if trains_B else rows + columns)
    merge_forward = mergeable and not alone and factors > rows * columns
    merge_backward = mergeable and positions > rows
    small = 4 * rank <= columns  # beside the input; else it is rather computed twice
    keep_hidden = trains_B and not merge_forward and (alone or small)
    return Plan(merge_forward, merge_backward, keep_hidden)


def mergeable(weight: torch.Tensor, dtype: torch.dtype, dropout: float) -> bool:
    """Whether the update can be merged into `weight` for a product computed in `dtype`."""
    return dropout == 0 and dtype == weight.dtype and dtype in (torch.float32, torch.float64)


def fuses_dropout(device: torch.device, dtype: torch.dtype, rank: int) -> bool:
    """Whether Triton's kernels draw the dropout mask inside a Linear's thin products.

    They want tensor cores, so float32 counts only where torch itself may round its factors to TF32.
    """
    exact = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
    fits = rank <= MOST_FUSED_RANK.get(dtype, 0) and not exact
    return device.type == "cuda" and fits and _compiles(device)


@cache
def _compiles(device: torch.device) -> bool:
    """Whether Triton is installed and knows the GPU; it has no bfloat16 on those before Ampere."""
    if importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
