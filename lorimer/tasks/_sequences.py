"""Tokenised texts as rows of batches: several packed into one row, or padded beside others of like length.

No row needs an attention mask. Padding stands on the right, where causal attention never looks; and packed
texts each count their positions from 0, by which transformers keeps attention from crossing between them.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lorimer.kernels.attention import attention_for

if TYPE_CHECKING:
    from lorimer.tasks._chat_tokens import Tokens

PART = 16  # rows that are padded to the same length within a batch
ALIKE = 8  # batches' worth of texts of neighbouring lengths that are shuffled among each other


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        ids: its tokens.
        learn: of each token, whether it is to be predicted from those before it.
        positions: of each token in its own text.
    """

    ids: tuple[int, ...]
    learn: tuple[bool, ...]
    positions: tuple[int, ...]

    @property
    def learned(self) -> int:
        """How many of its tokens are learned."""
        return sum(self.learn)


class Rows(Dataset[Row]):
    """Rows to train on, and what the engine must know of each.

    Attributes:
        groups: which rows are of like length; empty where all are.
        weights: the learned tokens of each: a batch's loss is their mean.
    """

    def __init__(self, rows: Sequence[Row], groups: Sequence[int] = ()) -> None:
        self.rows, self.groups = list(rows), tuple(groups)
        self.weights = tuple(float(row.learned) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def row_of(texts: Sequence[Tokens]) -> Row:
    """Texts one after the other. The first token of each has nothing before it, so it is never learned."""
    return Row(
        ids=tuple(token for text in texts for token in text.ids),
        learn=tuple(learn and place > 0 for text in texts for place, learn in enumerate(text.learn)),
        positions=tuple(place for text in texts for place in range(len(text.ids))),
    )


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which of the texts of these lengths share a row of at most `capacity` tokens.

    Best fit, in an order that is random but always the same: the longest first would need a few rows less,
    but put texts of like lengths together, and batches then differ more from each other than chance makes
    them, which slows learning. A text is never cut.

    Raises:
        ValueError: a text is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is free, row), sorted
    for index in random.Random(len(lengths)).sample(range(len(lengths)), len(lengths)):
        if lengths[index] > capacity:
            raise ValueError(f"text {index} has {lengths[index]} tokens and a row {capacity}")
        place = bisect.bisect_left(room, (lengths[index], -1))
        if place == len(room):
            rows.append([index])
            free, row = capacity - lengths[index], len(rows) - 1
        else:
            free, row = room.pop(place)
            rows[row].append(index)
            free -= lengths[index]
        bisect.insort(room, (free, row))
    return rows


def length_groups(lengths: Sequence[int], batch_size: int) -> tuple[int, ...]:
    """The group of each text, by length, so that a batch of one group needs little padding."""
    groups = [0] * len(lengths)
    for place, index in enumerate(sorted(range(len(lengths)), key=lambda each: (lengths[each], each))):
        groups[index] = place // (batch_size * ALIKE)
    return tuple(groups)


def in_parts(
    run: Callable[[dict[str, Tensor]], Tensor],
    batch: dict[str, Tensor],
    lengths: Tensor,
    size: int = PART,
    recomputed: bool = False,
) -> Tensor:
    """What `run` gives for each row of a batch padded on either side, a few rows of like lengths at a time.

    Args:
        batch: tensors (rows, length), among them "attention_mask".
        lengths: (rows,) of each row without its padding.
        recomputed: see `attention_for`.
    """
    order = lengths.argsort(stable=True)
    outputs = []
    for places in order.split(size):
        seen = batch["attention_mask"][places].any(0).nonzero().squeeze(1)
        begin, end = int(seen[0]), int(seen[-1]) + 1
        with attention_for(end - begin, lengths.device, recomputed):
            outputs.append(run({name: tensor[places, begin:end] for name, tensor in batch.items()}))
    return torch.cat(outputs)[order.argsort()]


def collate_rows(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """A batch: "ids", "positions" (rows, length) and "learn" of the same shape, bool, padded on the right."""
    length = max(len(row.ids) for row in rows)
    lacking = [length - len(row.ids) for row in rows]
    return {
        "ids": torch.tensor([[*row.ids, *[pad] * n] for row, n in zip(rows, lacking, strict=True)]),
        "learn": torch.tensor([[*row.learn, *[False] * n] for row, n in zip(rows, lacking, strict=True)]),
        "positions": torch.tensor([_positions(row, n) for row, n in zip(rows, lacking, strict=True)]),
    }


def _positions(row: Row, lacking: int) -> list[int]:
    """Padding goes on counting after one text; after packed ones it is a text of its own."""
    first = 0 if row.positions.count(0) > 1 else len(row.ids)
    return [*row.positions, *range(first, first + lacking)]
