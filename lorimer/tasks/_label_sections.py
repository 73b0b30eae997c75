"""What a recipe that learns labels may hold under `objective:`, whatever it gives them to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat

from lorimer.tasks._base import Section


class LabelObjective(Section):
    """The loss, and where the head begins."""

    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: rare labels count more, so that all count the same together."""
    label_smoothing: NonNegativeFloat = Field(0.0, lt=1.0)
    """The share of the target that is spread over all labels."""
    head_start: Literal["random", "linear-probe"] = "random"
    """Where a new head begins: `linear-probe` is the best linear layer on what the frozen network gives
    (arXiv 2202.10054), found before the first step by one pass over up to 10,000 examples."""
