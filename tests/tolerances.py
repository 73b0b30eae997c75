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


# The same adapter in another program (PEFT, diffusers) on a whole small network in float32: each layer sums
# in another order, as in SAME_OUTPUT, and the network magnifies it; a lost scale is off by 0.01 and more.
SAME_NETWORK_OUTPUT = 1e-4

# A layer's update read back from a file whose alpha stands in float32.
SAME_UPDATE = 1e-6

# A step cut into micro-batches against the same step as one batch, relative to the tensor's largest
# entry: float64 sums in another order, but shares and clipping pass through float32 scalars.
SAME_SUM = 1e-5

# Products in 8-bit integers against their bound: sums of integers are exact, so what is left are the float32
# roundings of scales and results, some ten of 6e-8 each.
INT8_ROUNDING = 1e-5

# Their root mean square error over 3,200 entries against the one that evenly spread rounding errors make:
# entries of a row share its roundings, so the mean itself scatters by a few per cent.
INT8_EXPECTED = 0.05

# An update taken apart and put together again (QR, singular values) in float64, against the dense sum.
SAME_ALGEBRA = 1e-9

# What a randomised SVD with twice the directions and four iterations leaves out, over what the best part of
# that rank must leave out; at most 1e-4 in five draws, on a spectrum that falls like k^-0.7.
NEARLY_BEST = 1e-3

# One layer in int8 against the exact one, relative to its largest entry: some 128 to 1,152 products, each off
# by 1/254 of the largest factor at most and by far less on average.
INT8_LAYER = 0.02

# The mean of 20,000 values rounded at random to bfloat16, relative: neighbours lie 2^-7 apart, so one value
# scatters by at most half that and the mean by 3e-5; five times as much.
ROUNDED_MEAN = 1.5e-4

# The share of 10,000 random draws below a quantile against the quantile's place: Kolmogorov's bound at which
# one set of draws in 10,000 fails; the seed is fixed.
SAMPLED_DENSITY = 0.0223

# A small network with one layer kept in few bits against the exact one, relative to its largest output: a
# weight is off by 1/254 of its row's largest at most in 8 bits, by about a tenth in 4, partly averaged out.
KEPT_IN_BITS = {"8bit": 0.02, "nf4": 0.2}

# A small network in bfloat16 against itself in float32, relative to its largest entry: some twenty layers of
# roundings of 4e-3 each; lost weights or a wrong time differ by 0.5 and more.
BF16_NETWORK = 0.1

# Logits of llama.cpp beside ours: it keeps keys and values in float16, which moves logits of a size of 1 by
# some 5e-4; rows in a wrong order move them by tenths.
SAME_IN_LLAMA_CPP = 2e-3
