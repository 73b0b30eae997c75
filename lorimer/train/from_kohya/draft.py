"""A recipe in the making, and what to tell about how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorimer.errors import RecipeError


@dataclass
class Draft:
    """Fields with where they came from, and notes.

    Attributes:
        given: kohya's options; those with a value that asks for nothing are not there.
        fields: dotted place -> value.
        comments: dotted place -> where the value came from.
        left_out: what is not there and changes nothing.
        changed: what is done otherwise than by kohya.
        refused: what would train something else.
    """

    given: Mapping[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def put(self, place: str, value: Any, comment: str = "") -> None:
        """Set a field of the recipe."""
        self.fields[place] = value
        self.comments[place] = comment

    def number(self, name: str, default: float | None = None) -> float:
        """An option as a number, from a number or text.

        Raises:
            RecipeError: it is neither.
        """
        value = self.given.get(name, default)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise RecipeError(f"{name}: must be a number, not {value!r}") from None
        return int(number) if number.is_integer() and "e" not in str(value).lower() else number

    def whole(self, name: str, default: int | None = None) -> int:
        """An option as a whole number.

        Raises:
            RecipeError: it is none.
        """
        number = self.number(name, default)
        if not isinstance(number, int):
            raise RecipeError(f"{name}: must be a whole number, not {self.given.get(name)!r}")
        return number


def pairs(value: Any, name: str) -> dict[str, str]:
    """{"conv_dim": "4"} for kohya's list ["conv_dim=4"], or the same in one text.

    Raises:
        RecipeError: something in it has no "=".
    """
    parts = value.split() if isinstance(value, str) else list(value or ())
    wrong = [part for part in parts if not isinstance(part, str) or "=" not in part]
    if wrong:
        raise RecipeError(f"{name}: each is written key=value, not {wrong[0]!r}")
    return {key.strip(): text.strip() for key, _, text in (part.partition("=") for part in parts)}
