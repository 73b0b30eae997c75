"""Learning-rate schedules: the factor on the rate, a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def factor(schedule: Schedule, step: int, steps: int, warmup_steps: int = 0) -> float:
    """The factor in (0, 1] on the learning rate at `step` (from 0) of `steps`.

    It rises evenly over `warmup_steps`, reaching 1 with the last of them; then it stays there, or falls to
    zero in a line or half a cosine, which it would reach one step after the last.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
