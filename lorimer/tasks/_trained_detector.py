"""A trained detector, from its adapter's file: its classes and what its head learned stand in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

import lorimer
from lorimer.errors import FileFormatError
from lorimer.tasks._box_maths import clip
from lorimer.tasks._classifier import put_on
from lorimer.tasks._detector import Detector, Found
from lorimer.tasks._detectors import fill_new, load_detector

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class TrainedDetector:
    """A base model with a trained adapter and head.

    Attributes:
        names: what it can find, in the order of labels.
    """

    detector: Detector
    model: nn.Module

    @property
    def names(self) -> tuple[str, ...]:
        return self.detector.names

    @classmethod
    def load(
        cls,
        adapter: Path,
        base: str,
        strength: float = 1.0,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
    ) -> TrainedDetector:
        """The detector of an adapter's file, on the fastest device.

        Raises:
            FileFormatError: the file is of no detector, or does not fit the base.
        """
        state = lorimer.read(adapter)
        facts = state.metadata
        if facts.get("task") != "object-detection":
            raise FileFormatError(f"{adapter}: is not the adapter of a detector: it names no classes")
        classes, keep = _classes(facts, adapter)
        detector = load_detector(base, classes, keep, dtype).restored(facts)
        _require_head(facts, detector.names, base)
        fill_new(detector.network, detector.new, state)
        put_on(detector.network, adapter, strength)
        return cls(detector, detector.network)

    def predict(
        self, pictures: Sequence[Image], least: float = 0.3, most: int = 100, batch_size: int = 8
    ) -> list[Found]:
        """What is in each upright RGB picture, in that picture's own pixels and cut to it."""
        device = next(self.model.parameters()).device
        found: list[Found] = []
        for begin in range(0, len(pictures), batch_size):
            part = pictures[begin : begin + batch_size]
            prepared = [self.detector.prepare(each) for each in part]
            pixels, windows = (
                torch.stack(each).to(device)
                for each in zip(*((seen.pixels, seen.window) for seen in prepared), strict=True)
            )
            told = self.detector.find(self.model, pixels, least, most, windows)
            for picture, seen, each in zip(part, prepared, told, strict=True):
                boxes = clip(seen.back(each.boxes.cpu()), *picture.size)
                found.append(Found(boxes, each.scores.cpu(), each.labels.cpu()))
        return found


def _require_head(facts: Mapping[str, str], names: Sequence[str], base: str) -> None:
    """Refuse a base whose classes are others than those of the base that was adapted: rows would be others.
    Files that do not tell are trusted."""
    told = facts.get("head")
    if told is not None and told != json.dumps(names, ensure_ascii=False):
        raise FileFormatError(
            f"{base}: is not the base of this adapter, whose head then has the classes {told[:200]}"
        )


def _classes(facts: Mapping[str, str], adapter: Path) -> tuple[list[str], bool]:
    """The classes that were learned, and whether the base's own stayed."""
    try:
        names, keep = json.loads(facts["classes"]), json.loads(facts["keep_classes"])
    except (KeyError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{adapter}: does not say its classes: {error}") from error
    named = isinstance(names, list) and all(isinstance(each, str) for each in names)
    if not isinstance(keep, bool) or not named:
        raise FileFormatError(f"{adapter}: classes must be names, and keep_classes true or false")
    return names, keep
