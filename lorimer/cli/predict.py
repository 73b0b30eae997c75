"""`lorimer predict`: what a trained classifier says of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lorimer.cli._options import AdapterSource, AsJson, BaseModel
from lorimer.errors import DataError, UsageError


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
    classifier = Classifier.load(adapter_file(source), base_of(source, recipe, model), strength)
    if classifier.pair is not None and texts:
        raise UsageError(
            f"{source} learned pairs of texts: give them in a --file that has a {classifier.pair!r} too"
        )
    rows = _rows_in(file)
    wanted = [*(texts or []), *_column(file, rows, column or (recipe.data.text if recipe else "text"))]
    if "" in map(str.strip, wanted):
        raise UsageError(
            f"text {[*map(str.strip, wanted)].index('') + 1} is empty: there is nothing to classify"
        )
    pairs = None if classifier.pair is None else _column(file, rows, classifier.pair)
    for text, told in zip(wanted, classifier.predict(wanted, pairs, batch_size), strict=True):
        typer.echo(json.dumps({"text": text, **told}, ensure_ascii=False) if as_json else _line(text, told))


def _rows_in(file: Path | None) -> Sequence[Mapping[str, Any]]:
    """The rows of a file, every one: lines that come out must be those that went in."""
    if file is None:
        return ()
    from lorimer.tasks._text_rows import read_rows

    found = read_rows(str(file))
    if found.skipped:
        raise DataError(
            f"{file}: {'; '.join(found.skipped)}; mend them, so that answers stand beside their rows"
        )
    return found.rows


def _column(file: Path | None, rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get(column), str):
            raise UsageError(f"{file}: row {number} has no text in {column!r}; name the column with --column")
    return [row[column] for row in rows]


def _line(text: str, told: dict[str, Any]) -> str:
    shown = " ".join(text.split())
    if "value" in told:
        return f"{told['value']:.4f}\t{shown}"
    labels = told["labels"]
    sure = ", ".join(f"{label} {told['probabilities'][label]:.1%}" for label in labels) or "none"
    return f"{sure}\t{shown}"
