"""`lorimer predict`: what a trained model says of texts or pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorimer.cli._options import AdapterSource, AsJson, BaseModel

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
    as_json: AsJson = False,
) -> None:
    """Classify texts or pictures with a trained adapter.

    Prints a line for each: the label and how sure the model is of it, a tab, and the text or the picture's
    name; with --json a line of JSON with the probability of every label. Several labels are given where each
    is likelier than not. Pictures that are broken are named at the end; the others are answered.
    """
    from lorimer.cli._answers import Asked, answering_task

    asked = Asked(source, tuple(inputs or ()), file, column, model, strength, batch_size)
    for answer in _ANSWERS[answering_task(source, _ANSWERS)](asked):
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


_ANSWERS: dict[str, Callable[[Asked], Iterable[Answer]]] = {
    "text-classification": _of_texts,
    "image-classification": _of_images,
}


def _shown(told: dict[str, Any]) -> str:
    """Labels and how sure they are, or the number."""
    if "value" in told:
        return f"{told['value']:.4f}"
    return ", ".join(f"{label} {told['probabilities'][label]:.1%}" for label in told["labels"]) or "none"
