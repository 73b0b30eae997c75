"""Strengths that change in the course of something, e.g. of drawing a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lorimer.errors import UsageError


@dataclass(frozen=True)
class StrengthSchedule:
    """A strength for every progress from 0 to 1.

    `StrengthSchedule([(0.0, 1.0), (0.6, 0.3)])` falls from 1 to 0.3 until 60 % is done and stays there.

    Attributes:
        points: (progress, strength) in the order of progress; linear between them, constant beyond.

    Raises:
        UsageError: there are no points, they are out of order, or one is no finite number.
    """

    points: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        try:
            points = tuple((float(progress), finite(strength)) for progress, strength in self.points)
        except (TypeError, ValueError) as error:
            raise UsageError(f"points are pairs (progress, strength), not {self.points!r}") from error
        progresses = [progress for progress, _ in points]
        if not points or not all(0.0 <= progress <= 1.0 for progress in progresses):
            raise UsageError(f"a schedule needs points, at progresses from 0 to 1, not {self.points!r}")
        if any(left >= right for left, right in pairwise(progresses)):
            raise UsageError(f"the progresses of a schedule must rise: {self.points!r}")
        object.__setattr__(self, "points", points)

    def at(self, progress: float) -> float:
        """The strength when `progress` (0 to 1) of the whole is done.

        Raises:
            UsageError: there is no such progress.
        """
        if not 0.0 <= progress <= 1.0:
            raise UsageError(f"progress goes from 0 to 1; {progress!r} is outside")
        if progress <= self.points[0][0]:
            return self.points[0][1]
        for (start, before), (end, after) in pairwise(self.points):
            if progress <= end:
                return before + (after - before) * ((progress - start) / (end - start))
        return self.points[-1][1]


def finite(strength: float) -> float:
    """The strength, which must be a finite number.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(strength, int | float) or not math.isfinite(strength):
        raise UsageError(f"a strength must be a finite number, not {strength!r}")
    return float(strength)
