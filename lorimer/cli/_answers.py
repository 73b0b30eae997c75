"""What `lorimer predict` is asked and what it answers, whatever the task."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lorimer
from lorimer.cli._runs import adapter_file
from lorimer.cli._texts import run_recipe
from lorimer.errors import UsageError


@dataclass(frozen=True)
class Asked:
    """The command line.

    Attributes:
        source: a run or an adapter's file.
        inputs: texts, or paths of pictures and folders.
        file, column: a file of texts, and its column.
        model: the base model, where it is said.
        batch_size: inputs at once.
        output, threshold: of detectors: a folder for what was found, and how sure a box must be.
    """

    source: Path
    inputs: tuple[str, ...]
    file: Path | None
    column: str | None
    model: str | None
    strength: float
    batch_size: int
    output: Path | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Answer:
    """name: what was asked, on one line; told: the answer, as JSON has it."""

    name: str
    told: dict[str, Any]


def answering_task(source: Path, tasks: Collection[str]) -> str:
    """Which of these tasks the adapter of a run or a file was trained for.

    Raises:
        UsageError: none of them, or there is no adapter.
        FileFormatError: the file is broken.
    """
    recipe = run_recipe(source, *tasks)
    task = recipe.task if recipe else lorimer.read(adapter_file(source)).metadata.get("task")
    if task is None or task not in tasks:
        raise UsageError(f"{source}: is no adapter of {' or '.join(tasks)}")
    return task
