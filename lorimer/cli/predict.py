"""`lorimer predict`: what a trained classifier says of texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lorimer.cli._options import AdapterSource, AsJson, BaseModel
from lorimer.errors import UsageError


def predict(
    source: AdapterSource,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts to classify.", show_default=False)
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
    batch_size: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Texts at once.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Classify texts with a trained adapter, one line for each.

    Prints the label and how sure the model is of it, a tab, and the text; with --json a line of JSON with the
    probability of every label. Several labels a text are given where each is likelier than not.
    """
    from lorimer.cli._runs import adapter_file
    from lorimer.cli._texts import base_of, run_recipe
    from lorimer.tasks._classifier import Classifier

    if not texts and file is None:
        raise UsageError("say what to classify: texts, or --file FILE")
    recipe = run_recipe(source, "text-classification")
    wanted = [*(texts or []), *_texts_in(file, column or (recipe.data.text if recipe else "text"))]
    length = recipe.data.max_length if recipe else 256
    classifier = Classifier.load(adapter_file(source), base_of(source, recipe, model), strength, length)
    for text, told in zip(wanted, classifier.predict(wanted, batch_size), strict=True):
        typer.echo(json.dumps({"text": text, **told}, ensure_ascii=False) if as_json else _line(text, told))


def _texts_in(file: Path | None, column: str) -> Iterator[str]:
    if file is None:
        return
    from lorimer.tasks._text_rows import read_rows

    for number, row in enumerate(read_rows(str(file)).rows, 1):
        if not isinstance(row.get(column), str):
            raise UsageError(f"{file}: row {number} has no text in {column!r}; name the column with --column")
        yield row[column]


def _line(text: str, told: dict[str, Any]) -> str:
    shown = " ".join(text.split())
    if "value" in told:
        return f"{told['value']:.4f}\t{shown}"
    labels = told["labels"]
    sure = ", ".join(f"{label} {told['probabilities'][label]:.1%}" for label in labels) or "none"
    return f"{sure}\t{shown}"
