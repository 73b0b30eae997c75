"""AdaLoRA's rank allocation (Zhang et al. 2023, arXiv 2303.10512): which triplets live.

An update of rank r is r triplets, each a row of A, an entry of E and a column of B. The importance of a
parameter p with gradient g is smoothed over the steps, and so is how uncertain it is (equations 8 to 10):

    I = |p · g|        s = b1 · s + (1 - b1) · I        u = b2 · u + (1 - b2) · |I - s|        score = s · u

A triplet's score is that of its entry of E plus the means over its row of A and its column of B (equation 7).
The triplets of highest score over all layers keep their entries of E, as many as the budget allows, which
falls from the full rank to the target by a cubic law (equation 12); the entries of the others become zero,
but go on learning until the budget is at its target, so a triplet may come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lorimer.adapters._controller import Controller

_STEPS_TO_JUDGE = 3  # before these, importance is noise, and B and A have hardly moved


class Triplets(Protocol):
    """An adapter in AdaLoRA's form, with a leading stack axis for a stack."""

    A: nn.Parameter  # (rank, in)
    E: nn.Parameter  # (rank, 1)
    B: nn.Parameter  # (out, rank)


@dataclass(frozen=True)
class Schedule:
    """How many triplets live after how many steps.

    Attributes:
        begin, target: at first and in the end.
        first, last: steps done when the budget begins to fall and when it is at its target.
        interval: steps between two allocations.
    """

    begin: int
    target: int
    first: int
    last: int
    interval: int

    def budget(self, done: int) -> int:
        """The number of living triplets after `done` steps."""
        if done >= self.last:
            return self.target
        if done <= self.first:
            return self.begin
        left = 1 - (done - self.first) / (self.last - self.first)
        return self.target + int((self.begin - self.target) * left**3)

    def allocates(self, done: int) -> bool:
        """Whether triplets are chosen after `done` steps."""
        return done == self.last or (self.first < done < self.last and done % self.interval == 0)


def schedule(begin: int, target: int, steps: int, warmup: float, settle: float, interval: int) -> Schedule:
    """The schedule of a run of `steps` steps, of which shares are spent before and after ranks are cut."""
    first = max(round(warmup * steps), _STEPS_TO_JUDGE)
    return Schedule(begin, min(begin, target), first, max(steps - round(settle * steps), first), interval)


def survivors(scores: list[Tensor], budget: int) -> list[Tensor]:
    """Masks, shaped as the scores, of the `budget` highest of all of them."""
    flat = torch.cat([score.reshape(-1) for score in scores])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(budget).indices] = True
    pieces = mask.split([score.numel() for score in scores])
    return [piece.view_as(score) for piece, score in zip(pieces, scores, strict=True)]


def triplet_scores(A: Tensor, E: Tensor, B: Tensor) -> Tensor:
    """(rank, 1) of triplets, from the scores of their parameters A (rank, in), E (rank, 1), B (out, rank)."""
    return E + A.mean(-1, keepdim=True) + B.mean(-2).unsqueeze(-1)


class RankAllocator(Controller):
    """The allocator over all layers of an adapter."""

    def __init__(
        self,
        adapters: Mapping[str, Triplets],
        schedule: Schedule,
        smoothing: tuple[float, float],
        orthogonality: float,
    ) -> None:
        self.adapters, self.schedule = adapters, schedule
        self.smoothing, self.orthogonality = smoothing, orthogonality
        self.importance = {name: torch.zeros_like(value) for name, value in self._parameters().items()}
        self.uncertainty = {name: torch.zeros_like(value) for name, value in self._parameters().items()}
        self.alive = {path: torch.ones_like(each.E, requires_grad=False) for path, each in adapters.items()}

    def penalty(self) -> Tensor | None:
        """Rows of A and columns of B are drawn towards orthonormal ones (equation 4, as the authors' code has
        it): the mean of ||A A^T - I|| and ||B^T B - I|| over all layers."""
        if self.orthogonality == 0.0:
            return None
        distances = []
        for each in self.adapters.values():
            for gram in (each.A @ each.A.mT, each.B.mT @ each.B):
                identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
                distances.append(torch.linalg.matrix_norm(gram - identity).mean())
        return self.orthogonality * torch.stack(distances).mean()

    @torch.no_grad()
    def after_step(self, step: int, finite: Tensor) -> None:
        done = step + 1
        if done <= self.schedule.last:
            self._observe(finite)
        if self.schedule.allocates(done):
            self._allocate(self.schedule.budget(done))
        if done >= self.schedule.last or self.schedule.allocates(done):
            for path, each in self.adapters.items():
                each.E.mul_(self.alive[path])

    def tensors(self) -> dict[str, Tensor]:
        parts = {"importance": self.importance, "uncertainty": self.uncertainty, "alive": self.alive}
        return {f"{part}.{name}": value for part, own in parts.items() for name, value in own.items()}

    def _observe(self, finite: Tensor) -> None:
        """Smooth the importance of every parameter and its uncertainty."""
        of_importance, of_uncertainty = self.smoothing
        for name, parameter in self._parameters().items():
            if parameter.grad is None:
                continue
            now = torch.where(finite, (parameter * parameter.grad).abs(), self.importance[name])
            self.importance[name].lerp_(now, 1 - of_importance)
            distance = (now - self.importance[name]).abs()
            distance = torch.where(finite, distance, self.uncertainty[name])
            self.uncertainty[name].lerp_(distance, 1 - of_uncertainty)

    def _allocate(self, budget: int) -> None:
        scores = [self._scores(path) for path in self.adapters]
        for path, mask in zip(self.adapters, survivors(scores, budget), strict=True):
            self.alive[path].copy_(mask)

    def _scores(self, path: str) -> Tensor:
        A, E, B = (
            self.importance[f"{path}.{name}"] * self.uncertainty[f"{path}.{name}"] for name in ("A", "E", "B")
        )
        return triplet_scores(A, E, B)

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{path}.{name}": parameter
            for path, each in self.adapters.items()
            for name, parameter in (("A", each.A), ("E", each.E), ("B", each.B))
        }
