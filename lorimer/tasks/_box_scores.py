"""How well boxes are found: COCO's average precision, by faster-coco-eval."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from lorimer.errors import MissingDependencyError
from lorimer.tasks._detector import Found, Truth

MOST = 100  # boxes of a picture that count, as in COCO


@dataclass(frozen=True)
class ClassScores:
    """Of one class: how many boxes there are, and its average precision over IoU 0.5 to 0.95, and at 0.5."""

    name: str
    boxes: int
    average_precision: float
    average_precision_50: float


@dataclass(frozen=True)
class Scores:
    """Mean average precision over classes that are there: over IoU 0.5 to 0.95, at 0.5 and at 0.75."""

    map: float
    map50: float
    map75: float
    classes: tuple[ClassScores, ...]

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        """For a run's events."""
        return {f"{prefix}map": self.map, f"{prefix}map50": self.map50, f"{prefix}map75": self.map75}

    def as_table(self) -> str:
        """Comma-separated, a line for each class that is there."""
        written = io.StringIO()
        table = csv.writer(written, lineterminator="\n")
        table.writerow(("class", "boxes", "average_precision", "average_precision_50"))
        for each in self.classes:
            shares = (f"{each.average_precision:.4f}", f"{each.average_precision_50:.4f}")
            table.writerow((each.name, each.boxes, *shares))
        return written.getvalue()


def average_precision(truths: Sequence[Truth], found: Sequence[Found], names: Sequence[str]) -> Scores:
    """Scores of what was found in each picture against what is there. Precision does not change where all
    boxes of a picture are scaled, so that prepared pictures will do.

    Raises:
        MissingDependencyError: faster-coco-eval is not installed.
    """
    if find_spec("faster_coco_eval") is None:
        raise MissingDependencyError('mAP needs faster-coco-eval: pip install "lorimer[vision]"')
    from faster_coco_eval import COCO, COCOeval_faster

    counts = np.zeros(len(names), dtype=int)
    for truth in truths:
        np.add.at(counts, truth.labels.cpu().numpy(), 1)
    there = [place for place in range(len(names)) if counts[place]]
    right = COCO(_as_coco(truths, there), print_function=_silent)
    boxes = _detections(found, set(there))
    if not boxes:
        none = tuple(ClassScores(names[place], int(counts[place]), 0.0, 0.0) for place in there)
        return Scores(0.0, 0.0, 0.0, none)
    judged = COCOeval_faster(right, right.loadRes(boxes), "bbox", print_function=_silent)
    judged.evaluate()
    judged.accumulate()
    # (IoU, recall, class, area, most boxes): all areas, and as many boxes as count.
    precision = judged.eval["precision"][:, :, :, 0, -1]
    over_all, at_50, at_75 = precision.mean((0, 1)), precision[0].mean(0), precision[5].mean(0)
    classes = tuple(
        ClassScores(names[place], int(counts[place]), float(over_all[row]), float(at_50[row]))
        for row, place in enumerate(there)
    )
    return Scores(float(over_all.mean()), float(at_50.mean()), float(at_75.mean()), classes)


def _as_coco(truths: Sequence[Truth], there: Sequence[int]) -> dict[str, object]:
    annotations = [
        {"image_id": picture, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for picture, truth in enumerate(truths, 1)
        for box, label in zip(_sized(truth.boxes), truth.labels.tolist(), strict=True)
    ]
    return {
        "images": [{"id": picture} for picture in range(1, len(truths) + 1)],
        "annotations": [{"id": number, **each} for number, each in enumerate(annotations, 1)],
        "categories": [{"id": place, "name": str(place)} for place in there],
    }


def _detections(found: Sequence[Found], there: set[int]) -> list[dict[str, object]]:
    """What was found of the classes that are there; others count in no mean."""
    return [
        {"image_id": picture, "category_id": label, "bbox": box, "score": score}
        for picture, each in enumerate(found, 1)
        for box, score, label in zip(
            _sized(each.boxes), each.scores.tolist(), each.labels.tolist(), strict=True
        )
        if label in there and math.isfinite(score)
    ]


def _sized(boxes: Tensor) -> list[list[float]]:
    """Corners -> x, y, width, height."""
    rows: list[list[float]] = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    return rows


def _silent(*_: object) -> None:
    """faster-coco-eval prints its progress."""
