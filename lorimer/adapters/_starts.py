"""How LoRA's factors begin: pure functions from a weight to A and B.

start         B·A at the start                source
kaiming       0                               LoRA's reference code: A Kaiming-uniform, B zero
gaussian      0                               LoRA's paper, section 4.1: A normal, B zero
orthogonal    0, neither factor is            A and B on orthogonal halves of the rank (PEFT's "orthogonal")
pissa         the principal part of W, / s    PiSSA, arXiv 2404.02948: exact SVD
pissa-fast    the same, nearly                section 3 there: randomised SVD (Halko et al., arXiv 0909.4061)
olora         the first columns of Q times    OLoRA, arXiv 2406.01775: W = Q·R
              the first rows of R

The papers that give B·A a value take it out of the frozen weight, W0 = W - s·B·A, and so spoil it for
everything else. Here W stays, and the update counts from the start instead, s·(B·A - B0·A0): the sum, its
gradients and hence training are the same. Starts that look at data are in `lorimer.ops.initialise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from lorimer.errors import UsageError

DATA_STARTS = ("eva", "corda", "lora-ga", "loftq")  # which `lorimer.initialise` computes

_ITERATIONS = 4  # of the randomised SVD; the field's usual choice ("pissa_niter_4")


@dataclass(frozen=True)
class Start:
    """One way to begin.

    Attributes:
        fill: (A, B, weight, scale) -> None, writes A (rank, in) and B (out, rank) in place.
        shifts: B·A is not zero, so that the update must count from it.
    """

    fill: Callable[[Tensor, Tensor, Callable[[], Tensor], float], None]
    shifts: bool = False


@torch.no_grad()
def fill(start: str, A: Tensor, B: Tensor, weight: Callable[[], Tensor], scale: float) -> None:
    """Fill A (rank, in) and B (out, rank), or stacks of them, after the start of that name. `weight()` gives
    the frozen weight (out, in), or their stack; the update is scale · B·A.

    Raises:
        UsageError: this weight, rank or scale does not allow that start.
    """
    if A.ndim == 2:
        STARTS[start].fill(A, B, weight, scale)
        return
    stack = cache(weight)  # it may be costly
    for index in range(len(A)):
        STARTS[start].fill(A[index], B[index], lambda index=index: stack()[index], scale)  # type: ignore[misc]


@torch.no_grad()
def put(A: Tensor, B: Tensor, down: Tensor, up: Tensor) -> None:
    """Write the factors down (k, in) and up (out, k) into A (rank, in) and B (out, rank). Where a weight has
    fewer than `rank` components, the rest begins as plain LoRA, so that it can learn too."""
    _kaiming(A, B)
    A[: len(down)] = down[: len(A)]
    B[:, : up.shape[1]] = up[:, : B.shape[1]]


def balanced(U: Tensor, S: Tensor, Vh: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A (k, in) and B (out, k) with scale · B·A = U diag(S) Vh, the root of S in either."""
    if scale == 0.0:
        raise UsageError("with alpha = 0 the update is nothing, and cannot begin as a part of the weight")
    root = (S / abs(scale)).sqrt()
    return root[:, None] * Vh, U * (math.copysign(1.0, scale) * root)


def principal(matrix: Tensor, rank: int, fast: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,) and Vh (k, in) of the `rank` largest components of a matrix (out, in), in float32 or
    wider; k is smaller than the rank where the matrix is. `fast` draws random vectors and is nearly right.

    Raises:
        UsageError: the matrix holds NaN or infinity.
    """
    matrix = widened(matrix)
    sample = 2 * rank  # twice as many random directions as are wanted
    if fast and sample < min(matrix.shape):
        U, S, V = torch.svd_lowrank(matrix, q=sample, niter=_ITERATIONS)
        Vh = V.T
    else:
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]


def widened(matrix: Tensor) -> Tensor:
    """A matrix in float32 or wider, which decompositions need.

    Raises:
        UsageError: it holds NaN or infinity.
    """
    if not torch.isfinite(matrix).all():
        raise UsageError("holds NaN or infinity, so it cannot be decomposed")
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def _kaiming(A: Tensor, B: Tensor, weight: object = None, scale: float = 1.0) -> None:
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    nn.init.zeros_(B)


def _gaussian(A: Tensor, B: Tensor, weight: Callable[[], Tensor], scale: float) -> None:
    nn.init.normal_(A, std=1 / A.shape[0])
    nn.init.zeros_(B)


def _orthogonal(A: Tensor, B: Tensor, weight: Callable[[], Tensor], scale: float) -> None:
    """A = Q[even]^T · N and B = N' · Q[odd] with Q (rank, rank) orthogonal, so that B·A = 0 up to rounding. N
    and N' are normal with deviation 0.1."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.promote_types(A.dtype, torch.float32), device=A.device)

    Q, _ = torch.linalg.qr(normal(len(A), len(A)))
    even, odd = Q[0::2], Q[1::2]
    A.copy_(even.T @ normal(len(even), A.shape[1]) / 10)
    B.copy_(normal(len(B), len(odd)) @ odd / 10)


def _pissa(A: Tensor, B: Tensor, weight: Callable[[], Tensor], scale: float) -> None:
    put(A, B, *balanced(*principal(weight(), len(A)), scale))


def _pissa_fast(A: Tensor, B: Tensor, weight: Callable[[], Tensor], scale: float) -> None:
    put(A, B, *balanced(*principal(weight(), len(A), fast=True), scale))


def _olora(A: Tensor, B: Tensor, weight: Callable[[], Tensor], scale: float) -> None:
    Q, R = torch.linalg.qr(widened(weight()))
    put(A, B, R[: len(A)], Q[:, : len(A)])


STARTS: dict[str, Start] = {
    "kaiming": Start(_kaiming),
    "gaussian": Start(_gaussian),
    "orthogonal": Start(_orthogonal),
    "pissa": Start(_pissa, shifts=True),
    "pissa-fast": Start(_pissa_fast, shifts=True),
    "olora": Start(_olora, shifts=True),
}
