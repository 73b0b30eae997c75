"""What a trained classifier says of texts. Imported when it is asked, since it imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorimer.cli._answers import Answer, Asked
from lorimer.cli._runs import adapter_file
from lorimer.cli._texts import base_of, run_recipe
from lorimer.errors import DataError, UsageError
from lorimer.tasks._classifier import Classifier
from lorimer.tasks._text_rows import read_rows


def answers(asked: Asked) -> Iterator[Answer]:
    """Of the texts that were given, then those of the file."""
    if not asked.inputs and asked.file is None:
        raise UsageError("say what to classify: texts, or --file FILE")
    source, file = asked.source, asked.file
    recipe = run_recipe(source, "text-classification")
    classifier = Classifier.load(adapter_file(source), base_of(source, recipe, asked.model), asked.strength)
    if classifier.pair is not None and asked.inputs:
        raise UsageError(
            f"{source} learned pairs of texts: give them in a --file that has a {classifier.pair!r} too"
        )
    rows = _rows_in(file)
    texts = [*asked.inputs, *_column(file, rows, asked.column or (recipe.data.text if recipe else "text"))]
    if "" in map(str.strip, texts):
        raise UsageError(
            f"text {[*map(str.strip, texts)].index('') + 1} is empty: there is nothing to classify"
        )
    pairs = None if classifier.pair is None else _column(file, rows, classifier.pair)
    for text, told in zip(texts, classifier.predict(texts, pairs, asked.batch_size), strict=True):
        yield Answer(" ".join(text.split()), {"text": text, **told})


def _rows_in(file: Path | None) -> Sequence[Mapping[str, Any]]:
    """The rows of a file, every one: lines that come out must be those that went in."""
    if file is None:
        return ()
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
