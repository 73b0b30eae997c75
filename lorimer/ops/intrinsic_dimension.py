"""How many numbers a task needs: the smallest random subspace in which training does nearly as well.

Li et al. 2018, arXiv 1804.08838: train theta = theta0 + P v, with a fixed random P (D, d), for growing d; the
first d that reaches 90 % of what full training reaches is d90. Aghajanyan et al. 2020, arXiv 2012.13255,
measure pretrained models so; d90 hints at the rank that an adapter needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from lorimer.errors import LorimerError, UsageError
from lorimer.ops._subspace import confine

MakeModel = Callable[[], nn.Module]
Train = Callable[[nn.Module, list[nn.Parameter]], object]
Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class IntrinsicDimension:
    """What was found.

    Attributes:
        dimension: the smallest dimension tried that reaches the threshold; None where none does.
        threshold: the score to reach.
        full: score of full training.
        parameters: D, how many parameters full training trains.
        curve: dimension -> score, of all that were tried, in growing order.
    """

    dimension: int | None
    threshold: float
    full: float
    parameters: int
    curve: dict[int, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for programs."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Lines for people."""
        found = "not reached" if self.dimension is None else f"{self.dimension:,} of {self.parameters:,}"
        lines = [f"intrinsic dimension {found}; full training {self.full:.4g}, to reach {self.threshold:.4g}"]
        return lines + [f"{dimension:10,}  {score:.4g}" for dimension, score in self.curve.items()]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def intrinsic_dimension(
    make_model: MakeModel,
    train: Train,
    evaluate: Evaluate,
    dimensions: Sequence[int],
    *,
    target: float = 0.9,
    baseline: float = 0.0,
    refine: int = 0,
    seed: int = 0,
) -> IntrinsicDimension:
    """The smallest of `dimensions` in which training reaches `target` of the full result: d90 at 0.9.

    For any task: what the model, its training and its score are is up to the caller. Every trial begins with
    the same random state; after the first dimension that suffices, larger ones are not tried.

    Args:
        make_model: gives a fresh model, the same each time but for what it draws from torch's random state.
        train: trains `model` by way of the given parameters, with an optimiser of its own making; the
            best learning rate for the subspace may differ from that for all parameters.
        evaluate: the model's score; more is better.
        dimensions: sizes of the subspace, in any order.
        target: share of the full result to reach, above 0 and at most 1.
        baseline: the score that counts as nothing: 0 for an accuracy, as in the paper; that of an untrained
            model for scores such as a negative loss.
        refine: bisect so many times between the last dimension that failed and the first that did not.
        seed: of the subspace and of each trial.

    Raises:
        UsageError: an argument cannot mean anything, or a dimension is beyond the number of parameters.
        LorimerError: full training does no better than the baseline, or a score is not finite.
    """
    if not dimensions or any(type(each) is not int or each < 1 for each in dimensions):
        raise UsageError(f"dimensions must be whole numbers of at least 1, not {list(dimensions)!r}")
    if not 0 < target <= 1:
        raise UsageError(f"target must be a share above 0 and at most 1, not {target!r}")
    trials = _Trials(make_model, train, evaluate, seed)
    full, parameters = trials.full()
    if full <= baseline:
        raise LorimerError(
            f"full training scores {full:.4g}, no better than the baseline of {baseline:.4g}; "
            "train longer, or say with baseline= what counts as nothing"
        )
    threshold = baseline + target * (full - baseline)
    curve, failed, found = _search(trials.within, sorted(set(dimensions)), threshold)
    for _ in range(refine if found is not None else 0):
        middle = (failed + (found or 0)) // 2
        if middle <= failed:
            break
        curve[middle] = trials.within(middle)
        failed, found = (failed, middle) if curve[middle] >= threshold else (middle, found)
    return IntrinsicDimension(found, threshold, full, parameters, dict(sorted(curve.items())))


def _search(
    score: Callable[[int], float], dimensions: Sequence[int], threshold: float
) -> tuple[dict[int, float], int, int | None]:
    """(curve, last dimension that failed or 0, first that did not)."""
    curve: dict[int, float] = {}
    failed = 0
    for dimension in dimensions:
        curve[dimension] = score(dimension)
        if curve[dimension] >= threshold:
            return curve, failed, dimension
        failed = dimension
    return curve, failed, None


@dataclass(frozen=True)
class _Trials:
    """One training after the other, all from the same random state, which is as before afterwards."""

    make_model: MakeModel
    train: Train
    evaluate: Evaluate
    seed: int

    def full(self) -> tuple[float, int]:
        """(score, number of parameters) of training all parameters."""
        with self._seeded():
            model = self.make_model()
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            if not parameters:
                raise UsageError("the model has no trainable parameters")
            return self._score(model, parameters), sum(each.numel() for each in parameters)

    def within(self, dimension: int) -> float:
        """Score of training in a subspace."""
        with self._seeded():
            model = self.make_model()
            return self._score(model, [confine(model, dimension, self.seed)])

    def _score(self, model: nn.Module, parameters: list[nn.Parameter]) -> float:
        self.train(model, parameters)
        score = float(self.evaluate(model))
        if not math.isfinite(score):
            raise LorimerError(f"the score is {score}; training diverged, lower its learning rate")
        return score

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            yield
