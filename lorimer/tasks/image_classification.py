"""Image classification: a vision model learns to say what pictures show.

The head is always trained in full and saved with the adapter; what the labels are called and how pictures are
prepared stands in the adapter's metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.distributions import Beta
from torch.utils.data import Dataset

from lorimer.errors import RecipeError
from lorimer.tasks._base import Task
from lorimer.tasks._checked_pictures import LabelledPicture, checked
from lorimer.tasks._class_table import class_table
from lorimer.tasks._classifier import spared_in
from lorimer.tasks._confusion import save_confusion, title_of
from lorimer.tasks._fixed_examples import FixedExamples, behind, recorded_rows, stacked_states
from lorimer.tasks._held_out_pictures import (
    by_folds,
    by_fraction,
    told_clusters,
    told_unlearned,
    without_held_out,
)
from lorimer.tasks._image_augmentation import Augmentation, augmented
from lorimer.tasks._image_models import ImageModel, load_image_model, logits_of, shown_image_model
from lorimer.tasks._image_preparation import Preparation
from lorimer.tasks._image_sections import ImageData, ImageObjective
from lorimer.tasks._label_losses import balanced, judged, losses, predicted, targets
from lorimer.tasks._labelled_pictures import Columns, find_pictures, held_out_split
from lorimer.tasks._labels import Labels, find_labels
from lorimer.tasks._linear_probe import KNOWN, begin_head
from lorimer.tasks._mistakes import draw_mistakes, worst_mistakes
from lorimer.tasks._picture_duplicates import clusters
from lorimer.tasks._scores import confusion

if TYPE_CHECKING:
    from lorimer.attachment.attached import AttachedAdapter
    from lorimer.train.recipe import Recipe


class Examples(FixedExamples):
    """Pictures, decoded when they are asked for: "pixel_values" (3, height, width), "label", "weight".

    Attributes:
        keys: hashes of each picture's file and of all that is done to it.
        weights: what each counts in a batch's mean loss, where not all count the same; else none.
    """

    def __init__(
        self,
        pictures: Sequence[LabelledPicture],
        preparation: Preparation,
        augmentation: Augmentation | None = None,
        counts: Sequence[float] = (),
        same: bool = True,
    ) -> None:
        self.pictures, self._preparation = pictures, preparation
        self._augmentation = augmentation if augmentation is not None and augmentation.varies else None
        self._counts = counts
        self.weights = tuple(map(self._weight, pictures)) if counts else ()
        self.keys: tuple[str, ...] = ()
        if same and self._augmentation is None:
            self.keys = tuple(
                hashlib.sha256(f"{picture.digest} {preparation.facts}".encode()).hexdigest()
                for picture in pictures
            )

    def __len__(self) -> int:
        return len(self.pictures)

    def example(self, index: int) -> dict[str, Any]:
        picture = self.pictures[index]
        opened = picture.open()
        if self._augmentation is None:
            values = self._preparation(opened)
        else:
            values = augmented(opened, self._augmentation, self._preparation)
        return {"pixel_values": values, "label": picture.label, "weight": self._weight(picture)}

    def known_example(self, index: int) -> dict[str, Any]:
        picture, geometry = self.pictures[index], self._preparation.geometry
        nothing = torch.full((), torch.nan).expand(3, geometry.height, geometry.width)
        return {"pixel_values": nothing, "label": picture.label, "weight": self._weight(picture)}

    def _weight(self, picture: LabelledPicture) -> float:
        return self._counts[picture.label] if self._counts else 1.0  # type: ignore[index]


class ImageClassification(Task):
    """Adapts a vision model, and trains its head."""

    name = "image-classification"
    description = "A vision model learns labels, several labels or a number for pictures"
    Data: ClassVar[type[ImageData]] = ImageData
    Objective: ClassVar[type[ImageObjective]] = ImageObjective

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.held_out: Examples | None = None
        self._told: list[str] = []

    def model(self) -> nn.Module:
        data, name = self.recipe.data, self.recipe.model
        if not isinstance(name, str):
            raise RecipeError("model: image-classification needs efficientnet-lite0, a folder or a hub name")
        self._columns = Columns(data.image, data.label, data.subset, data.max_rows, data.labels)
        self._found = find_pictures(data.path, data.split, self._columns)
        self.labels = find_labels(self._found.labels(data.label), data.label, data.kind, data.labels)
        if self.labels.kind != "single" and self.recipe.objective.class_weights != "none":
            raise RecipeError(
                "objective.class_weights: there are no classes to weigh unless each picture has one"
            )
        names = self.labels.names or ("value",)
        self._loaded: ImageModel = load_image_model(
            name, names, data.asked, self.recipe.train.weights_dtype()
        )
        return self._loaded.model

    def targets(self, model: nn.Module) -> tuple[str, ...]:
        """Projections; in a network that has none but its head, convolutions."""
        spared = set(self.spared(model))
        linear = [
            path for path, each in model.named_modules() if isinstance(each, nn.Linear) and path not in spared
        ]
        return ("all-linear",) if linear else ("all-linear-conv",)

    def full(self, model: nn.Module) -> Mapping[str, Sequence[int] | None]:
        """The head, and modules whose weights are new."""
        return dict.fromkeys(self._loaded.heads)

    def spared(self, model: nn.Module) -> Sequence[str]:
        """What is trained in full."""
        return spared_in(model, self.full(model))

    def data(self, model: nn.Module) -> Dataset[Any]:
        data, objective = self.recipe.data, self.recipe.objective
        pictures, told = checked(self._found, self.labels)
        self._told += told
        pictures, held_out = self._sides(pictures)
        self._told += told_unlearned(pictures, self.labels)
        if held_out:
            self._told.append(f"{len(pictures):,} to learn from, {len(held_out):,} held out")
            self.held_out = Examples(held_out, self._loaded.preparation)
        found = [picture.label for picture in pictures]
        counts = balanced(found, self.labels) if objective.class_weights == "balanced" else ()
        same = not objective.mixup
        return Examples(pictures, self._loaded.preparation, data.augment, counts, same)

    def _sides(self, pictures: list[LabelledPicture]) -> tuple[list[LabelledPicture], list[LabelledPicture]]:
        """(to learn from, held out), of which lines are told."""
        data, seed = self.recipe.data, self.recipe.train.seed
        held, apart = data.validation, data.duplicates == "apart"
        if held.fraction is not None or held.folds is not None:
            alike = [[place] for place in range(len(pictures))]
            if apart:
                alike = clusters([picture.likeness for picture in pictures])
                self._told += told_clusters(pictures, alike)
            if held.fraction is not None:
                return by_fraction(pictures, alike, held.fraction, seed)
            return by_folds(pictures, alike, held.folds, held.fold or 0, seed)
        place, split = self._held_out_place()
        if place is None:
            return pictures, []
        found = find_pictures(place, split, replace(self._columns, limit=None))
        held_out, told = checked(found, self.labels)
        self._told += [f"held out: {line}" for line in told]
        if apart:
            pictures, told = without_held_out(pictures, held_out)
            self._told += told
        return pictures, held_out

    def _held_out_place(self) -> tuple[str | None, str | None]:
        """(where pictures are that are held out, which part of that), None where there are none."""
        data, held = self.recipe.data, self.recipe.data.validation
        if held.path is None:
            split = held.split or held_out_split(data.path, data.split)
            return data.path if split else None, split
        folder = Path(held.path).expanduser().is_dir()
        return held.path, held.split or held_out_split(held.path) or (None if folder else "test")

    def begin(self, adapter: AttachedAdapter, batches: Iterable[Any]) -> str:
        if self.recipe.objective.head_start == "random":
            return ""
        if not self._loaded.new:
            return KNOWN
        return begin_head(
            adapter,
            self._loaded.heads,
            len(self.labels.names) or 1,
            batches,
            partial(self._logits, adapter.model),
            self._losses,
        )

    def collate(self, examples: Sequence[Any]) -> Any:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "label": targets([example["label"] for example in examples], self.labels),
            "weight": torch.tensor([example["weight"] for example in examples]),
            **stacked_states(examples),
        }

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        mixup = self.recipe.objective.mixup
        if not mixup:
            return self._weighted(self._logits(model, batch), batch).sum() / batch["weight"].sum()
        share = Beta(mixup, mixup).sample().item()
        order = torch.randperm(len(batch["label"])).to(batch["label"].device)
        other = {name: values[order] for name, values in batch.items()}
        mixed = share * batch["pixel_values"] + (1.0 - share) * other["pixel_values"]
        logits = self._logits(model, {**batch, "pixel_values": mixed})
        each = share * self._weighted(logits, batch) + (1.0 - share) * self._weighted(logits, other)
        return each.sum() / batch["weight"].sum()

    def _weighted(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """(N,) The losses, each as much as its example counts."""
        return self._losses(logits, batch["label"]) * batch["weight"]

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return losses(logits, target, self.labels.kind, self.recipe.objective.label_smoothing)

    def _logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        with behind(self.prefix, batch, len(batch["pixel_values"])):
            return logits_of(model, batch["pixel_values"])

    def record(self, model: nn.Module, batch: Any) -> list[tuple[Tensor, ...]]:
        return recorded_rows(self.prefix, lambda: self._logits(model, batch))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if self.held_out is None:
            return {}
        smoothing = self.recipe.objective.label_smoothing
        return judged(*self._predicted(model), self.labels.kind, smoothing)

    def _predicted(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits and labels of all held-out pictures, on the CPU."""
        return predicted(partial(self._logits, model), self._batches(model))

    def _batches(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Held-out pictures in their order."""
        assert self.held_out is not None
        device, size = next(model.parameters()).device, self.recipe.train.batch_size
        for begin in range(0, len(self.held_out), size):
            places = range(begin, min(begin + size, len(self.held_out)))
            batch = self.collate([self.held_out[place] for place in places])
            yield send_to_device(batch, device)

    def preview(self, model: nn.Module, folder: Path, step: int) -> list[Path]:
        """Of the held-out pictures a table of the labels, and where each has one label, the confusion matrix
        and the worst mistakes."""
        if self.held_out is None or self.labels.kind == "regression":
            return []
        logits, labels = self._predicted(model)
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / f"labels-{step:06d}.csv"
        table.write_text(class_table(logits, labels, self.labels), encoding="utf-8")
        if self.labels.kind == "multi":
            return [table]
        matrix = confusion(logits.argmax(1), labels, len(self.labels.names))
        files = [table, save_confusion(matrix, self.labels.names, self.recipe.name, step, folder)]
        if mistakes := worst_mistakes(logits, labels):
            sheet = folder / f"mistakes-{step:06d}.png"
            title = title_of(matrix, self.recipe.name, step)
            draw_mistakes(mistakes, self.held_out.pictures, self.labels.names, title).save(sheet)
            files.append(sheet)
        return files

    def describe(self, model: nn.Module, data: Dataset[Any]) -> list[str]:
        geometry = self._loaded.preparation.geometry
        return [*self._told, f"pictures are seen at {geometry.width} x {geometry.height} px"]

    def metadata(self) -> dict[str, str]:
        labels: Labels = self.labels
        return {
            "base_model": shown_image_model(str(self.recipe.model)),
            "task": self.name,
            "labels": json.dumps(labels.names, ensure_ascii=False),
            "label_kind": labels.kind,
            "preparation": str(self.recipe.data.asked),
        }
