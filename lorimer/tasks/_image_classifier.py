"""A trained classifier of pictures, from its adapter's file: labels, head and preparation stand in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

import lorimer
from lorimer.errors import FileFormatError
from lorimer.tasks._classifier import answer, fill, put_on
from lorimer.tasks._image_models import load_image_model, logits_of
from lorimer.tasks._image_preparation import Asked, Preparation

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageClassifier:
    """A base model with a trained adapter and head.

    Attributes:
        preparation: what pictures go through before it.
        kind: "single", "multi" or "regression".
        labels: what its outputs are called; none for a number.
    """

    model: nn.Module
    preparation: Preparation
    kind: str
    labels: tuple[str, ...]

    @classmethod
    def load(
        cls,
        adapter: Path,
        base: str,
        strength: float = 1.0,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
    ) -> ImageClassifier:
        """The classifier of an adapter's file, on the fastest device; `dtype` as for `load_image_model`.

        Raises:
            FileFormatError: the file is of no classifier of pictures, or does not fit the base.
            RecipeError: the base takes no pictures of that size, or gives other weights each time.
        """
        state = lorimer.read(adapter)
        facts = state.metadata
        if "preparation" not in facts or "labels" not in facts:
            raise FileFormatError(f"{adapter}: is not the adapter of a classifier of pictures")
        labels = tuple(json.loads(facts["labels"]))
        found = load_image_model(base, labels or ("value",), Asked.read(facts["preparation"]), dtype)
        fill(found.model, found.new, state)
        put_on(found.model, adapter, strength)
        return cls(found.model, found.preparation, facts["label_kind"], labels)

    def predict(self, pictures: Sequence[Image]) -> list[dict[str, Any]]:
        """Of each upright RGB picture `labels` (those that hold) and `probabilities` (label -> share), or a
        `value`."""
        device = next(self.model.parameters()).device
        pixels = torch.stack([self.preparation(picture) for picture in pictures]).to(device)
        with torch.no_grad():
            logits = logits_of(self.model, pixels).cpu()
        return [answer(row, self.kind, self.labels) for row in logits]
