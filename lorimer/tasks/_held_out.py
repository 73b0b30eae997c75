"""Which examples are held out, where the recipe says how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from lorimer.errors import DataError

Example = TypeVar("Example")


def split(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(what is trained on, what is held out), each in its old order; the seed chooses.

    Raises:
        DataError: nothing would be left to train on.
    """
    count = max(1, round(len(examples) * fraction))
    if count >= len(examples):
        raise DataError(
            f"data.validation.fraction: of {len(examples)} examples {count} would be held out, none left"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = set(torch.randperm(len(examples), generator=generator)[:count].tolist())
    return (
        [each for place, each in enumerate(examples) if place not in chosen],
        [each for place, each in enumerate(examples) if place in chosen],
    )
