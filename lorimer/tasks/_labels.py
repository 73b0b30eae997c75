"""What the labels of rows are: found out and said, for texts and pictures alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorimer.errors import DataError
from lorimer.tasks._text_rows import Rows

Label = int | float | tuple[int, ...]

_MANY = 200  # more names of labels than that are likely no labels
_NO_NUMBERS = {"nan", "inf", "infinity"}


@dataclass(frozen=True)
class Labels:
    """kind: "single", "multi" or "regression"; names: of the labels, none for a number."""

    kind: str
    names: tuple[str, ...]

    def of(self, value: Any) -> Label:
        """A row's value as a label.

        Raises:
            ValueError: it is none; the message says why.
        """
        if self.kind == "regression":
            if not _is_number(value):
                raise ValueError(f"{value!r} is no number")
            return float(value)
        if self.kind == "single" and _is_list(value):
            raise ValueError("it has several labels")
        if self.kind == "multi":
            return tuple(sorted(self._place(each) for each in _listed(value)))
        return self._place(value)

    def _place(self, value: Any) -> int:
        name = label_name(value)
        if name not in self.names:
            raise ValueError(f"{name!r} is none of the labels")
        return self.names.index(name)


def label_name(value: Any) -> str:
    """What a label is called: 1 and 1.0 are "1"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def find_labels(rows: Rows, column: str, kind: str | None, names: Sequence[str]) -> Labels:
    """What the labels of these rows are.

    Args:
        kind, names: as the recipe says them; None and none find out.

    Raises:
        DataError: there is no such column, or it holds no labels.
    """
    values = [row[column] for row in rows.rows if not is_missing(row.get(column))]
    if not values and any(column in row for row in rows.rows):
        raise DataError(f"{rows.source}: {column!r} is empty in every row; there are no labels to learn")
    if not values:
        known = ", ".join(map(str, rows.rows[0]))
        raise DataError(
            f"{rows.source}: no row has a {column!r}; name the column with data.label. It has {known}"
        )
    if kind is None:
        kind = "multi" if any(map(_is_list, values)) else "single"
        if kind == "single" and column not in rows.classes and _have_fractions(values):
            kind = "regression"
    if kind == "regression":
        return Labels(kind, ())
    found = {
        label_name(each) for value in values for each in (_listed(value) if kind == "multi" else [value])
    }
    if not names and len(found) > _MANY and column not in rows.classes:
        raise DataError(
            f"{rows.source}: {column!r} has {len(found)} different values; if they are labels, list them in "
            "data.labels, if numbers, set data.kind to regression"
        )
    twice = [name for name, count in Counter(names).items() if count > 1 or not name.strip()]
    if twice or (len(names) == 1 and kind == "single"):
        raise DataError(f"data.labels: must be two labels or more, each once: {list(names)}")
    if not found:
        raise DataError(f"{rows.source}: no row has any label in {column!r}")
    if not names and len(found) < 2 and kind == "single":
        raise DataError(
            f"{rows.source}: every row has the label {min(found)!r}; there is nothing to tell apart"
        )
    return Labels(kind, tuple(names) or tuple(sorted(found, key=_order)))


def told_labels(labels: Labels, found: Sequence[Label]) -> str:
    """What these examples have for labels, to end a line that counts them."""
    if labels.kind == "regression":
        return f" with numbers from {min(found):g} to {max(found):g}"
    counts = Counter(place for label in found for place in (label if isinstance(label, tuple) else (label,)))
    shown = ", ".join(f"{name} {counts[place]:,}" for place, name in enumerate(labels.names[:12]))
    return f" of {len(labels.names)} labels ({shown}{', ...' * (len(labels.names) > 12)})"


def _listed(value: Any) -> Sequence[Any]:
    """Several labels: a list, or one text with commas, as tables have it."""
    if isinstance(value, str):
        return [each for part in value.split(",") if (each := part.strip())]
    return value if _is_list(value) else [value]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def is_missing(value: Any) -> bool:
    """Whether there is no label: nothing, an empty text, or what tables write for nothing."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _have_fractions(values: Sequence[Any]) -> bool:
    """Whether all are numbers, or what stands for a missing one, and some of them not whole."""
    numbers = [float(each) for each in values if _is_number(each)]
    others = {label_name(each).lower().lstrip("+-") for each in values if not _is_number(each)}
    return others <= _NO_NUMBERS and not all(map(float.is_integer, numbers))


def _order(name: str) -> tuple[bool, float, str]:
    """Numbers by value, then names."""
    return (False, float(name), name) if _is_number(name) else (True, 0.0, name)
