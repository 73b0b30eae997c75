"""Object detection: a detector learns to find things in pictures and to say what they are.

Weights of classes that are new, and whatever else the base's files lack, are trained in full and saved with
the adapter; what the classes are called stands in the adapter's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lorimer.errors import DataError, RecipeError, UsageError
from lorimer.tasks._base import Section, Task
from lorimer.tasks._box_check import BoxSet, checked, class_names
from lorimer.tasks._box_drawing import Marks, comparison
from lorimer.tasks._box_examples import BoxExamples
from lorimer.tasks._box_maths import clip_to
from lorimer.tasks._box_pictures import BoxPicture
from lorimer.tasks._box_scores import MOST, Scores, average_precision
from lorimer.tasks._box_split import hold_out, missing_classes, without_held_out
from lorimer.tasks._boxes import read_boxes
from lorimer.tasks._classifier import spared_in
from lorimer.tasks._detection_sections import BoxData, BoxPreview
from lorimer.tasks._detector import Found, Truth
from lorimer.tasks._detectors import load_detector
from lorimer.tasks._fixed_examples import behind, recorded_rows, stacked_states
from lorimer.tasks._model_files import shown_name

if TYPE_CHECKING:
    from lorimer.train.recipe import Recipe

_LEAST = 0.01  # how sure a box must be to count in a score
_NAMED = 12  # classes that are named one by one


class ObjectDetection(Task):
    """Adapts a detector of transformers or a NanoDet."""

    name = "object-detection"
    description = "A detector learns to find and name things in pictures"
    Data: ClassVar[type[Section]] = BoxData
    Preview: ClassVar[type[Section]] = BoxPreview
    rests: ClassVar[bool] = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._told: list[str] = []
        self.held_out: BoxExamples | None = None
        self._known: BoxExamples | None = None

    def model(self) -> nn.Module:
        data, name = self.recipe.data, self.recipe.model
        if not isinstance(name, str):
            raise RecipeError("model: object-detection needs a folder or a hub name")
        self._written = read_boxes(
            data.path, split=data.split, subset=data.subset, pictures=data.pictures, names=data.classes
        )
        self.classes = class_names(self._written, data.classes)
        dtype = self._weights_dtype()
        self.detector = load_detector(name, self.classes, data.keep_classes, dtype)
        return self.detector.network

    def _weights_dtype(self) -> torch.dtype:
        train = self.recipe.train
        dtype = train.weights_dtype()
        if dtype != torch.float32 and train.mixed_precision == "no":
            raise RecipeError(
                f"train.base_dtype: pictures are float32, which weights in {train.base_dtype} cannot read; "
                f"set train.mixed_precision: {train.base_dtype} as well"
            )
        return dtype

    def targets(self, model: nn.Module) -> tuple[str, ...]:
        """Every Linear; in a network without any, convolutions."""
        linear = any(isinstance(module, nn.Linear) for module in model.modules())
        return ("all-linear",) if linear else ("all-linear-conv",)

    def full(self, model: nn.Module) -> Mapping[str, Sequence[int] | None]:
        return self.detector.new

    def spared(self, model: nn.Module) -> Sequence[str]:
        return spared_in(model, self.detector.new)

    def data(self, model: nn.Module) -> Dataset[Any]:
        data = self.recipe.data
        found = checked(self._written, self.classes, data.bad_boxes == "leave-out", data.box_format)
        self._told = list(found.told)
        learned, held = self._split(found)
        try:
            self.detector.fit_to([each.size for each in learned], data.resolution)
        except UsageError as error:
            raise RecipeError(f"data.resolution: {error}") from error
        self.held_out = BoxExamples(self._in_head(held), self.detector) if held else None
        self._known = self._known_before(learned)
        return BoxExamples(self._in_head(learned), self.detector, data.augment)

    def _split(self, found: BoxSet) -> tuple[list[BoxPicture], list[BoxPicture]]:
        """(to learn from, held out), as the recipe asks. A split that somebody made stays, but for copies."""
        data, wanted = self.recipe.data, self.recipe.data.validation
        if wanted.path is not None or wanted.split is not None:
            own = self._read(wanted.path or data.path, wanted.split)
            self._told += [f"held out: {line}" for line in own.told]
            held = list(own.pictures)
            learned, told = without_held_out(found, own)
        elif wanted.fraction is not None:
            learned, held, told = hold_out(found, wanted.fraction, self.recipe.train.seed)
        else:
            return list(found.pictures), []
        self._told += [*told, f"{len(learned):,} pictures to learn from, {len(held):,} held out"]
        if not learned:
            raise DataError("data.validation: no picture is left to learn from")
        if not any(len(each.boxes) for each in held):
            raise DataError("data.validation: no held-out picture has a box, by which to judge")
        if missing := missing_classes(held, self.classes):
            self._told.append(f"no held-out picture shows {', '.join(missing)}")
        return learned, held

    def _read(self, place: str, split: str | None) -> BoxSet:
        data = self.recipe.data
        layout = data.box_format if place == data.path else None
        written = read_boxes(
            place, split=split, subset=data.subset, pictures=data.pictures, names=data.classes
        )
        return checked(written, self.classes, data.bad_boxes == "leave-out", layout)

    def _known_before(self, learned: Sequence[BoxPicture]) -> BoxExamples | None:
        """The pictures of classes that the base knew, with the head's labels."""
        data, names = self.recipe.data, self.detector.names
        if data.also_knows is None:
            return None
        written = read_boxes(data.also_knows, names=names)
        forgotten = {box.label for each in written.pictures for box in each.boxes} - {*names}
        if forgotten and not data.keep_classes:
            raise RecipeError(
                f"data.also_knows: the head has no class {min(forgotten)!r}; set data.keep_classes: true"
            )
        found = checked(written, names, False, None)
        if not any(len(each.boxes) for each in found.pictures):
            raise DataError("data.also_knows: no picture has a box, by which to judge")
        self._told += [f"also knows: {line}" for line in found.told[:1]]
        known = {each.digest for each in found.pictures}
        if both := sum(each.digest in known for each in learned):
            self._told.append(f"also knows: {both} of its pictures are learned from, and tell little")
        return BoxExamples(found.pictures, self.detector)

    def _in_head(self, pictures: Sequence[BoxPicture]) -> list[BoxPicture]:
        """Pictures whose labels are places among the head's classes instead of the data's."""
        places = torch.tensor([self.detector.names.index(name) for name in self.classes])
        return [each.with_labels(places[each.labels]) for each in pictures]

    def collate(self, examples: Sequence[Any]) -> Any:
        return {
            "pixels": torch.stack([each["pixels"] for each in examples]),
            "windows": torch.stack([each["window"] for each in examples]),
            "boxes": [each["boxes"] for each in examples],
            "labels": [each["labels"] for each in examples],
            **stacked_states(examples),
        }

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        with self._behind_prefix(batch):
            return self.detector.loss(model, batch["pixels"], _truths(batch), batch["windows"])

    def record(self, model: nn.Module, batch: Any) -> list[tuple[Tensor, ...]]:
        return recorded_rows(self.prefix, lambda: self.loss(model, batch))

    def _behind_prefix(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:
        return behind(self.prefix, batch, len(batch["pixels"]))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if self.held_out is None:
            return {}
        losses, truths, found = self._judged(model, self.held_out, with_loss=True)
        scores = self._scores(truths, found)
        known: dict[str, float] = {}
        if self._known is not None:
            _, truths, found = self._judged(model, self._known)
            known = self._scores(truths, found).as_metrics("known_")
        return {"validation_loss": sum(losses) / len(self.held_out), **scores.as_metrics(), **known}

    def _scores(self, truths: Sequence[Truth], found: Sequence[Found]) -> Scores:
        return average_precision(truths, found, self.detector.names)

    def _judged(
        self, model: nn.Module, examples: BoxExamples, with_loss: bool = False
    ) -> tuple[list[float], list[Truth], list[Found]]:
        """(the loss of each batch times its pictures, what is there, what was found and cut to its picture),
        on the CPU."""
        losses: list[float] = []
        truths: list[Truth] = []
        found: list[Found] = []
        for batch in self._batches(model, examples):
            there = _truths(batch)
            if with_loss:
                losses.append(self.loss(model, batch).item() * len(there))
            truths += [Truth(each.boxes.cpu(), each.labels.cpu()) for each in there]
            with self._behind_prefix(batch):
                each_found = self.detector.find(model, batch["pixels"], _LEAST, MOST, batch["windows"])
            found += [
                Found(clip_to(each.boxes.cpu(), window), each.scores.cpu(), each.labels.cpu())
                for each, window in zip(each_found, batch["windows"].cpu(), strict=True)
            ]
        return losses, truths, found

    def _batches(self, model: nn.Module, examples: BoxExamples) -> Iterator[Any]:
        from accelerate.utils import send_to_device

        device, size = next(model.parameters()).device, self.recipe.train.batch_size
        for begin in range(0, len(examples), size):
            places = range(begin, min(begin + size, len(examples)))
            yield send_to_device(self.collate([examples[place] for place in places]), device)

    def preview(self, model: nn.Module, folder: Path, step: int) -> list[Path]:
        """Held-out pictures with the boxes that are there and those that were found, and a table of average
        precision by class."""
        if self.held_out is None:
            return []
        _, truths, found = self._judged(model, self.held_out)
        folder.mkdir(parents=True, exist_ok=True)
        scores = self._scores(truths, found)
        table = folder / f"classes-{step:06d}.csv"
        table.write_text(scores.as_table(), encoding="utf-8")
        if not self.recipe.preview.pictures:
            return [table]
        title = f"{self.recipe.name}, after {step} steps: mAP50 {scores.map50:.1%}, mAP {scores.map:.1%}"
        sheet = folder / f"boxes-{step:06d}.png"
        comparison(list(self._drawn(found)), self.detector.names, title).save(sheet)
        return [sheet, table]

    def _drawn(self, found: Sequence[Found]) -> Iterator[tuple[Any, Marks, Marks]]:
        """(picture, what is there, what was found), for the pictures that a preview shows."""
        assert self.held_out is not None
        for place in range(min(self.recipe.preview.pictures, len(self.held_out))):
            one, each = self.held_out.boxed(place), found[place]
            sure = each.scores >= self.recipe.preview.threshold
            boxes = self.detector.prepare(one.picture).back(each.boxes[sure])
            yield (
                one.picture,
                Marks(one.boxes, one.labels),
                Marks(boxes, each.labels[sure], each.scores[sure]),
            )

    def describe(self, model: nn.Module, data: Dataset[Any]) -> list[str]:
        kept = [name for name in self.detector.names if name not in self.classes]
        head = f"the head knows {_some(self.classes)}" + (f", and still {_some(kept)}" if kept else "")
        return [*self._told, head, *self.detector.describe()]

    def metadata(self) -> dict[str, str]:
        return {
            "base_model": shown_name(str(self.recipe.model)),
            "task": self.name,
            "classes": json.dumps(self.classes, ensure_ascii=False),
            "keep_classes": json.dumps(self.recipe.data.keep_classes),
            "head": json.dumps(self.detector.names, ensure_ascii=False),
            **self.detector.metadata(),
        }


def _truths(batch: Mapping[str, Any]) -> list[Truth]:
    return [Truth(boxes, labels) for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{len(names)} classes ({shown}{', ...' if len(names) > _NAMED else ''})"
