"""From rows to texts with labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lorimer.errors import DataError
from lorimer.tasks._labels import Label, Labels, is_missing, told_labels
from lorimer.tasks._text_rows import Rows


@dataclass(frozen=True)
class Text:
    """text, pair: what is classified, a second text where there is one; label: the place of its label, the
    places of its labels, or a number."""

    text: str
    pair: str | None
    label: Label


def as_texts(
    rows: Rows, labels: Labels, text: str, pair: str | None, label: str
) -> tuple[list[Text], list[str]]:
    """The texts of rows, and lines that say what was read and what skipped.

    Raises:
        DataError: no row can be used.
    """
    found: list[Text] = []
    skipped: Counter[str] = Counter()
    for row in rows.rows:
        said, second = row.get(text), row.get(pair) if pair else None
        if not isinstance(said, str) or not said.strip():
            skipped[f"{text!r} is empty or no text"] += 1
        elif pair and not isinstance(second, str):
            skipped[f"{pair!r} is no text"] += 1
        elif is_missing(row.get(label)):
            skipped[f"{label!r} is empty"] += 1
        else:
            try:
                found.append(Text(said, second, labels.of(row[label])))
            except ValueError as error:
                skipped[str(error)] += 1
    reasons = "; ".join(f"{count} because {reason}" for reason, count in skipped.most_common(3))
    if not found:
        columns = ", ".join(map(str, rows.rows[0]))
        raise DataError(
            f"{rows.source}: no row can be used: {reasons}. Its columns are {columns}; name yours with "
            "data.text and data.label"
        )
    told = f"{rows.source}: {len(found):,} texts{told_labels(labels, [text.label for text in found])}"
    return found, [
        told + (f"; {sum(skipped.values()):,} skipped: {reasons}" if skipped else ""),
        *rows.skipped,
    ]
