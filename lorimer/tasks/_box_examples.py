"""Pictures with boxes as a detector sees them; read and decoded one by one, when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import Dataset

from lorimer.tasks._box_augment import Augment, Boxed, augmented
from lorimer.tasks._box_pictures import BoxPicture
from lorimer.tasks._detector import Detector
from lorimer.tasks._picture_decoding import decode, on_white


class BoxExamples(Dataset[dict[str, Any]]):
    """Prepared pictures: "pixels" (3, height, width), "boxes" (N, 4) in those pixels, "labels" (N,).

    Args:
        augment: how pictures are changed at random; None for never.
    """

    def __init__(
        self, pictures: Sequence[BoxPicture], detector: Detector, augment: Augment | None = None
    ) -> None:
        self.pictures, self.detector, self.augment = pictures, detector, augment

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = self.boxed(index)
        if self.augment is not None:
            one = augmented(one, self.augment, self._another)
        prepared = self.detector.prepare(one.picture)
        return {"pixels": prepared.pixels, "boxes": prepared.onto(one.boxes), "labels": one.labels}

    def boxed(self, index: int) -> Boxed:
        """A picture as its file has it."""
        each = self.pictures[index]
        picture = on_white(decode(each.stored.read(each.name), each.name))
        return Boxed(picture, each.boxes, each.labels)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """What the pixels of each example depend on, hashed; empty where they differ from time to time."""
        if self.augment is not None:
            return ()
        how = self.detector.preparation().encode()
        return tuple(hashlib.sha256(each.digest + how).hexdigest() for each in self.pictures)

    def _another(self) -> Boxed:
        return self.boxed(int(torch.randint(len(self.pictures), ())))
