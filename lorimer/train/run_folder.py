"""The run folder: what a run owns, and what others may read while it goes on.

    run/recipe.yaml  status.json  events.jsonl  control/  samples/  checkpoints/step-000400/  adapter/

One process owns a run; whoever else looks only reads, and asks by writing a file into `control/`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import yaml

from lorimer.errors import StateError, UsageError
from lorimer.formats.safe_io import remove_temporaries, write_bytes_atomic
from lorimer.train.checkpoint import remove_unfinished
from lorimer.train.recipe import Recipe

_MEASURED = {"step", "evaluation", "preview", "checkpoint"}  # events that a resumed run makes again


class RunFolder:
    """The paths of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.status = self.path / "status.json"
        self.events = self.path / "events.jsonl"
        self.control = self.path / "control"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.lock_file = self.path / ".lock"

    def require_new(self) -> None:
        """Raise `UsageError` unless the folder is missing or empty (but for what a killed start left)."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"output {self.path} is a file; name a folder")
        if self.path.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise UsageError(
                f"output {self.path} is not empty; to go on with the run in it: "
                f"lorimer train --resume {self.path}; to begin another, choose a new folder: output=..."
            )

    def require_run(self) -> None:
        """Raise `UsageError` unless a run was begun here."""
        if not self.recipe.is_file():
            raise UsageError(f"{self.path} holds no run: there is no recipe.yaml in it")

    def prepare(self, recipe: Recipe, step: int | None) -> None:
        """Write the recipe, which makes this a run, make what is missing, and keep the events up to `step`
        (None: from a start)."""
        text = yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True)
        write_bytes_atomic(self.recipe, text.encode())  # first: with less in it the folder counts as empty
        for folder in (self.control, self.samples, self.checkpoints):
            folder.mkdir(exist_ok=True)
        remove_unfinished(self.checkpoints)
        remove_temporaries(self.path)
        _forget_after(self.events, -1 if step is None else step)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the folder; the system lets go of it when the process ends, however it ends.

        Raises:
            StateError: another process owns it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a+") as file:
            try:
                _lock(file)
            except OSError as error:
                raise StateError(f"{self.path}: another process is training in this folder") from error
            yield


def _forget_after(path: Path, step: int) -> None:
    """Drop from a killed run's events what the resumed run will measure again, and a line cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if line.endswith("\n") and (entry["step"] <= step or entry["event"] not in _MEASURED):
            kept.append(line)
    write_bytes_atomic(path, "".join(kept).encode())


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # Unlike flock, this kind is not inherited by loader workers, which may outlive a killed parent.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
