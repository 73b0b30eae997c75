"""From a run folder to its adapter. Commands import this file when they run, since it imports torch."""

from __future__ import annotations

from pathlib import Path

from lorimer.errors import UsageError
from lorimer.formats.safe_io import read_json
from lorimer.train.run_folder import RunFolder


def adapter_of(run: Path) -> Path:
    """Where a run puts its adapter in lorimer's own format."""
    return RunFolder(run).adapter / "adapter.safetensors"


def state_of(folder: RunFolder) -> str:
    """ "running", "finished", "interrupted", "failed", or "not begun"; a killed run still says "running"."""
    return str(read_json(folder.status)["state"]) if folder.status.is_file() else "not begun"


def is_finished(folder: RunFolder) -> bool:
    """Whether the run took all its steps, so that its adapter is what came of them."""
    return state_of(folder) == "finished" and adapter_of(folder.path).is_file()


def adapter_file(source: Path) -> Path:
    """The adapter that `source` stands for: that of a run folder, else `source` itself.

    Raises:
        UsageError: the run has none yet.
    """
    if not RunFolder(source).recipe.is_file():
        return source
    if not adapter_of(source).is_file():
        raise UsageError(
            f"{source} has no adapter yet; finish training with: lorimer train --resume {source}"
        )
    return adapter_of(source)


def weighed(text: str) -> tuple[Path, float | None]:
    """(source, weight) of "SOURCE=WEIGHT"; no weight where none is said.

    Raises:
        UsageError: the weight is no number.
    """
    name, equals, value = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), None
    try:
        return Path(name), float(value)
    except ValueError:
        raise UsageError(f"{text}: {value!r} is no weight; write FILE=0.7") from None
