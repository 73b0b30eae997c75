"""Pictures with boxes as a detector sees them; read and decoded one by one, when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from lorimer.tasks._box_augment import Augment, Boxed, augmented
from lorimer.tasks._box_pictures import BoxPicture
from lorimer.tasks._detector import Detector
from lorimer.tasks._fixed_examples import FixedExamples
from lorimer.tasks._picture_decoding import decode, on_white


class BoxExamples(FixedExamples):
    """Prepared pictures: "pixels" (3, height, width), "window" (4,) of the picture in those pixels, "boxes"
    (N, 4) in them, "labels" (N,).

    Args:
        augment: how pictures are changed at random; None for never.
    """

    def __init__(
        self, pictures: Sequence[BoxPicture], detector: Detector, augment: Augment | None = None
    ) -> None:
        self.pictures, self.detector, self.augment = pictures, detector, augment
        self.keys = () if augment is not None else self._keys()
        self._known: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def example(self, index: int) -> dict[str, Any]:
        one = self.boxed(index)
        if self.augment is not None:
            one = augmented(one, self.augment, self._another)
        prepared = self.detector.prepare(one.picture)
        return {
            "pixels": prepared.pixels,
            "window": prepared.window,
            "boxes": prepared.onto(one.boxes),
            "labels": one.labels,
        }

    def known_example(self, index: int) -> dict[str, Any]:
        """Where picture and boxes lie in the canvas shows when they are first prepared."""
        if index not in self._known:
            example = self.example(index)
            nothing = torch.full((), torch.nan).expand(example["pixels"].shape)
            self._known[index] = {**example, "pixels": nothing}
        return self._known[index]

    def boxed(self, index: int) -> Boxed:
        """A picture as its file has it."""
        each = self.pictures[index]
        picture = on_white(decode(each.stored.read(each.name), each.name))
        return Boxed(picture, each.boxes, each.labels)

    def _keys(self) -> tuple[str, ...]:
        """What the pixels of each example depend on, hashed."""
        how = self.detector.preparation().encode()
        return tuple(hashlib.sha256(each.digest + how).hexdigest() for each in self.pictures)

    def _another(self) -> Boxed:
        return self.boxed(int(torch.randint(len(self.pictures), ())))
