"""How LoRA's factors begin where data tells: pure functions from statistics to A and B.

Every function gives A (k, in) and B (out, k), with k the rank or, where the weight has fewer components,
their number; the update is scale · B·A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorimer.adapters._starts import balanced, principal, widened
from lorimer.errors import UsageError

_DAMPING = 0.01  # of a covariance, relative to its mean diagonal
_SOLVED = 1e-2  # largest relative error of C^-1 · C that is good enough
_OVERSAMPLING = 2  # directions kept while data streams by, for each that is wanted


@dataclass(frozen=True)
class Principal:
    """Principal components of the rows seen so far.

    Attributes:
        count: how many rows.
        mean: (in,), their mean.
        spread: sum of all squared deviations from it; squared singular values are shares of it.
        singular, directions: (k,) and (k, in), the largest components of the rows less their mean.
    """

    count: int
    mean: Tensor
    spread: float
    singular: Tensor
    directions: Tensor


def add_rows(before: Principal | None, rows: Tensor, rank: int) -> Principal:
    """Components after `rows` (n, in) more, by incremental SVD with a moving mean (Ross et al. 2008,
    "Incremental Learning for Robust Visual Tracking", section 3.1). Twice the rank is kept under way."""
    count, mean = len(rows), rows.mean(0)
    centred = rows - mean
    spread = centred.square().sum().item()
    if before is not None:
        total = before.count + count
        drift = (before.count * count / total) ** 0.5 * (before.mean - mean)
        centred = torch.cat([before.singular[:, None] * before.directions, centred, drift[None]])
        mean = before.mean + (mean - before.mean) * (count / total)
        spread += before.spread + drift.square().sum().item()
        count = total
    _, singular, directions = principal(centred, _OVERSAMPLING * rank, fast=True)
    return Principal(count, mean, spread, singular, directions)


def alignment(before: Principal, after: Principal, rank: int) -> float:
    """The least absolute cosine between the first `rank` directions of two readings, pairwise; 0 where the
    one has fewer."""
    left, right = before.directions[:rank], after.directions[:rank]
    return 0.0 if left.shape != right.shape else (left * right).sum(1).abs().min().item()


def eva_factors(inputs: Principal, rank: int, rows: int) -> tuple[Tensor, Tensor]:
    """EVA (Paischer et al. 2024, arXiv 2410.07170): A = the directions in which the layer's inputs vary most,
    B (rows, k) = 0."""
    A = inputs.directions[:rank]
    return A, A.new_zeros(rows, len(A))


def spread_ranks(explained: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """EVA's redistribution: of all layers' directions the `budget` that explain most of their layer's inputs.
    `explained` holds for each layer the share that each direction explains, falling. No layer is left
    without rank."""
    shares = [(share, path) for path, own in explained.items() for share in own[1:].tolist()]
    ranks = dict.fromkeys(explained, 1)
    for _, path in sorted(shares, key=lambda each: -each[0])[: max(budget - len(ranks), 0)]:
        ranks[path] += 1
    return ranks


def corda_factors(
    weight: Tensor, covariance: Tensor, rank: int, scale: float, *, preserve: bool
) -> tuple[Tensor, Tensor]:
    """CorDA (Yang et al. 2024, arXiv 2406.05223): W = U S (V^T C^-1) with U S V^T = svd(W C).

    weight W (out, in), covariance C (in, in) of the layer's inputs. scale · B·A are the largest components
    of W so seen ("instruction-previewed": what the data uses is trained), or with `preserve` the smallest
    ("knowledge-preserved": what the data uses stays).
    """
    covariance, inverse = _invertible(widened(covariance))
    weight = widened(weight).to(covariance)
    U, S, Vh = torch.linalg.svd(weight @ covariance, full_matrices=False)
    chosen = slice(max(len(S) - rank, 0), None) if preserve else slice(0, rank)
    return balanced(U[:, chosen], S[chosen], Vh[chosen] @ inverse, scale)


def lora_ga_factors(gradient: Tensor, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    """LoRA-GA (Wang et al. 2024, arXiv 2407.05000), algorithm 1. From a weight's gradient U S V^T (out, in):
    A = c · V[:r]^T and B = c · U[r:2r] with c = out^(1/4) / sqrt(gamma), so that the first step of both
    moves W along the gradient's 2r largest components."""
    U, _, Vh = principal(gradient, 2 * rank, fast=True)
    half = min(rank, len(Vh))
    size = len(gradient) ** 0.25 / gamma**0.5
    return size * Vh[:half], size * U[:, U.shape[1] - half :]


def loftq_factors(original: Tensor, quantised: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """LoftQ (Li et al. 2023, arXiv 2310.08659), its step of low rank: scale · B·A = the largest components of
    what quantisation lost, W - Q, both (out, in)."""
    return balanced(*principal(widened(original) - widened(quantised), rank), scale)


def _invertible(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """A covariance with enough on its diagonal to be inverted, and its inverse.

    Raises:
        UsageError: it is zero.
    """
    if not covariance.any():
        raise UsageError("sees nothing but zeros in this data; exclude it, or start it in another way")
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    typical = covariance.diagonal().mean()
    damping = _DAMPING
    while True:
        damped = covariance + damping * typical * identity
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            if (damped @ inverse - identity).abs().max() < _SOLVED:
                return damped, inverse
        damping *= 2
