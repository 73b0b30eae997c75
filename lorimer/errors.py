"""Every error lorimer raises on purpose, and the exit code the command line gives it.

    LorimerError                 1   something failed
    ├── UsageError               2   the call cannot mean anything
    │   ├── RecipeError              a recipe field is unknown or wrong
    │   ├── TargetError              a target matches nothing, or something that cannot be adapted
    │   └── StateError               right call, wrong moment: merging twice, detaching while merged
    ├── DataError                3   training data is missing or broken
    │   └── FileFormatError          an adapter or weight file is broken, hostile or of another kind
    ├── MissingDependencyError   4   an optional package is not installed
    └── Interrupted            130   stopped by a person, after saving

A message names the place, what is wrong, and the mend.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_SHOWN_PROBLEMS = 50


class LorimerError(Exception):
    """Something failed; the base of every error lorimer raises on purpose."""

    exit_code = 1


class UsageError(LorimerError):
    """The call or command cannot mean anything."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe field is unknown, missing or has a wrong value."""


class TargetError(UsageError):
    """A target matches no module, or one that cannot be adapted."""


class StateError(UsageError):
    """The call is right but the model is not in a state for it."""


class DataError(LorimerError):
    """Training data is missing, broken or empty."""

    exit_code = 3


class FileFormatError(DataError):
    """A weight or adapter file is broken, hostile, incomplete or of another kind."""


class MissingDependencyError(LorimerError):
    """An optional package is needed and not installed."""

    exit_code = 4


class Interrupted(LorimerError):
    """A person stopped the run; its state was saved first."""

    exit_code = 130


def suggest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'rank'?"`` for a near miss, else an empty string; made to end a message."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""


def listed(place: str, problems: Sequence[str]) -> str:
    """All that is wrong, as one message."""
    shown, more = "\n  ".join(problems[:_SHOWN_PROBLEMS]), len(problems) - _SHOWN_PROBLEMS
    head = f"{place}: {len(problems)} problem{'s' * (len(problems) > 1)}\n  {shown}"
    return head + (f"\n  and {more} more" if more > 0 else "")
