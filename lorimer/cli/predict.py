"""`lorimer predict`: what a trained model says of texts or pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorimer.cli._options import AdapterSource, AsJson, BaseModel
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.cli._answers import Answer, Asked


def predict(
    source: AdapterSource,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Texts; pictures and folders of such.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texts in a file: CSV, TSV, JSON, JSONL, Parquet, YAML or .txt."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The file's column of texts; by default the run's.")
    ] = None,
    model: BaseModel = None,
    strength: Annotated[float, typer.Option(metavar="NUMBER", help="1 is the adapter as trained.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Inputs at once.")] = 32,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of detectors: where drawn pictures and predictions.json go."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="NUMBER", help="Of detectors: how sure a box must be; 0.3."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what texts or pictures are, or find things in pictures.

    Prints a line for each: the label and how sure the model is of it, a tab, and the text or the picture's
    name; with --json a line of JSON with the probability of every label. Several labels are given where each
    is likelier than not. Of a detector, prints how many of each class were found, with --json every box;
    --output FOLDER gets drawn copies of the pictures, and all boxes in COCO's form. Pictures that are broken
    are named at the end; the others are answered.
    """
    from lorimer.cli._answers import Asked, answering_task

    asked = Asked(source, tuple(inputs or ()), file, column, model, strength, batch_size, output, threshold)
    task = answering_task(source, _ANSWERS)
    if task != "object-detection" and not (output is None and threshold is None):
        raise UsageError(f"--output and --threshold are for detectors, and {source} is of {task}")
    if task != "text-classification" and column is not None:
        raise UsageError(f"--column is for texts, and {source} is of {task}")
    for answer in _ANSWERS[task](asked):
        line = (
            json.dumps(answer.told, ensure_ascii=False)
            if as_json
            else f"{_shown(answer.told)}\t{answer.name}"
        )
        typer.echo(line)


def _of_texts(asked: Asked) -> Iterable[Answer]:
    from lorimer.cli._predict_texts import answers

    return answers(asked)


def _of_images(asked: Asked) -> Iterable[Answer]:
    from lorimer.cli._predict_images import answers

    return answers(asked)


def _of_boxes(asked: Asked) -> Iterable[Answer]:
    from lorimer.cli._predict_boxes import answers

    return answers(asked)


_ANSWERS: dict[str, Callable[[Asked], Iterable[Answer]]] = {
    "text-classification": _of_texts,
    "image-classification": _of_images,
    "object-detection": _of_boxes,
}


def _shown(told: dict[str, Any]) -> str:
    """Labels and how sure they are, the number, or how many of each class were found."""
    if "boxes" in told:
        counts = Counter(box["label"] for box in told["boxes"])
        return ", ".join(f"{count} {label}" for label, count in sorted(counts.items())) or "nothing"
    if "value" in told:
        return f"{told['value']:.4f}"
    return ", ".join(f"{label} {told['probabilities'][label]:.1%}" for label in told["labels"]) or "none"
