"""Singular values of updates, and how many of them to keep. Tensors in, tensors out.

    Δ = U · diag(S) · V      U: (..., out, k), S: (..., k) falling, V: (..., k, in)

Leading axes count the matrices of a stack, which share one rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lorimer.adapters._base import MAX_RANK
from lorimer.errors import UsageError

Decomposition = tuple[Tensor, Tensor, Tensor]

# Up to this many rows or columns the whole decomposition is as quick as a part of it.
_EXACT = 512
_OVERSAMPLING, _POWER_STEPS = 16, 4


@dataclass(frozen=True)
class Keep:
    """How much of an update to keep: the smallest rank that fulfils `energy` and `error`, at most `rank`.

    Attributes:
        rank: at most so many singular values.
        energy: share of the sum of squared singular values to keep, above 0 and at most 1.
        error: relative error in the Frobenius norm, ‖Δ - Δ'‖ / ‖Δ‖, to stay within; energy = 1 - error².
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and not (type(self.rank) is int and 1 <= self.rank <= MAX_RANK):
            raise UsageError(f"rank must be a whole number from 1 to {MAX_RANK}, not {self.rank!r}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"energy must be a share above 0 and at most 1, not {self.energy!r}")
        if self.error is not None and not 0 <= self.error < 1:
            raise UsageError(f"error must be a share of at least 0 and below 1, not {self.error!r}")

    @property
    def everything(self) -> bool:
        """Whether nothing is to be lost."""
        return self == EVERYTHING

    @property
    def share(self) -> float | None:
        """The share of the squared norm that must be kept, where one is asked for."""
        asked = [self.energy] if self.energy is not None else []
        asked += [1 - self.error**2] if self.error is not None else []
        return max(asked, default=None)

    def count(self, values: Tensor, total: float) -> int | None:
        """How many of the singular values (..., k) to keep, at least 1, where the whole squared norm is
        `total`; None where `values` are too few to tell."""
        found = _smallest(values, total, self.share)
        if self.rank is None:
            return found
        known = found is not None or values.shape[-1] >= self.rank
        return min(self.rank, found or self.rank) if known else None


EVERYTHING = Keep()


def _smallest(values: Tensor, total: float, share: float | None) -> int | None:
    """The smallest number of singular values that hold `share` of `total`; without a share, those that are
    not rounding noise."""
    squares = values.double().square().reshape(-1, values.shape[-1]).sum(0)
    if share is None or share == 1:
        return max(1, int((squares > total * 1e-24).sum().item()))
    reached = torch.cumsum(squares, 0) >= total * share * (1 - 1e-12)
    if total == 0:
        return 1
    return int(reached.int().argmax().item()) + 1 if bool(reached.any()) else None


def factored_svd(up: Tensor, down: Tensor) -> Decomposition:
    """The exact decomposition of up · down, (..., out, R) times (..., R, in), k = min(out, R, in) at most.

    Never forms the product: with up = Q₁R₁ and downᵀ = Q₂R₂ it is that of the small R₁R₂ᵀ, turned by Q₁, Q₂.
    """
    left, left_rest = torch.linalg.qr(up)
    right, right_rest = torch.linalg.qr(down.mT)
    U, S, V = torch.linalg.svd(left_rest @ right_rest.mT, full_matrices=False)
    noise = up.norm() * down.norm() * torch.finfo(S.dtype).eps * S.shape[-1]
    return left @ U, S.where(noise < S, 0), V @ right.mT  # where factors cancel, nothing is left but rounding


def dense_svd(matrix: Tensor, keep: Keep) -> Decomposition:
    """The decomposition of a matrix (..., out, in) with at least as many values as `keep` asks for.

    Exact where the matrix is small or most of it is kept; else by a randomised range finder that grows until
    it holds enough.
    """
    limit = min(matrix.shape[-2:])
    total = squared_norm(matrix)
    size = keep.rank or 64
    while limit > _EXACT and keep not in (EVERYTHING, Keep(error=0.0)) and size + _OVERSAMPLING <= limit // 4:
        U, S, V = randomised_svd(matrix, size)
        if keep.count(S, total) is not None:
            return U, S, V
        size *= 2
    return torch.linalg.svd(matrix, full_matrices=False)


def randomised_svd(matrix: Tensor, rank: int, seed: int = 0) -> Decomposition:
    """The leading `rank` singular values and vectors of (..., out, in), nearly optimal (Halko, Martinsson,
    Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1)."""
    generator = torch.Generator(matrix.device).manual_seed(seed)
    shape = (*matrix.shape[:-2], matrix.shape[-1], rank + _OVERSAMPLING)
    probe = torch.randn(shape, generator=generator, dtype=matrix.dtype, device=matrix.device)
    range_, _ = torch.linalg.qr(matrix @ probe)
    for _ in range(_POWER_STEPS):
        rows, _ = torch.linalg.qr(matrix.mT @ range_)
        range_, _ = torch.linalg.qr(matrix @ rows)
    U, S, V = torch.linalg.svd(range_.mT @ matrix, full_matrices=False)
    return (range_ @ U)[..., :rank], S[..., :rank], V[..., :rank, :]


def split(svd: Decomposition, count: int) -> tuple[Tensor, Tensor]:
    """The leading `count` directions as factors (up, down), the singular values shared evenly between them,
    so that neither gets entries that a coarse precision cannot hold."""
    U, S, V = (svd[0][..., :count], svd[1][..., :count], svd[2][..., :count, :])
    root = S.sqrt()
    return U * root.unsqueeze(-2), root.unsqueeze(-1) * V


def tail_error(values: Tensor, count: int) -> float:
    """‖Δ - Δ'‖ / ‖Δ‖ where Δ' keeps the leading `count` of all the singular values (..., k) of Δ."""
    total = squared_norm(values)
    return math.sqrt(squared_norm(values[..., count:]) / total) if total else 0.0


def squared_norm(tensor: Tensor) -> float:
    """‖tensor‖² in double precision."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item() ** 2


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values (k,) as shares of their sum (Roy & Vetterli 2007): k where
    all are equal, 1 where one is alone; 0 for no update."""
    shares = values / values.sum() if values.sum() > 0 else values[:0]
    return math.exp(torch.special.entr(shares).sum().item()) if len(shares) else 0.0


def stable_rank(values: Tensor) -> float:
    """‖Δ‖² in the Frobenius norm over that in the spectral norm; 0 for no update."""
    return (values.square().sum() / values.max().square()).item() if values.max() > 0 else 0.0
