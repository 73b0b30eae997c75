"""A disk that is full or read-only: loud, the former checkpoint intact, nothing claimed that is not there."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorimer.errors import LorimerError
from lorimer.formats.safe_io import writing
from lorimer.train import events as events_module
from lorimer.train.checkpoint import list_checkpoints, newest_checkpoint
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.faults.forks import outcome
from tests.unit.train import small
from tests.unit.train.small import recipe

OVERRIDES = ("train.steps=6", "train.checkpoint_every=2", "train.keep_checkpoints=2")
FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole") / "style"
    small.hook(None)
    train(recipe(folder, *OVERRIDES))
    return outcome(folder)


def failing(real: Callable[..., Any], error: OSError, after: list[int]) -> Callable[..., Any]:
    """`real`, but `error` from the moment that `after` holds a number that has run out."""

    def call(*arguments: Any, **options: Any) -> Any:
        if after:
            after[0] -= 1
            if after[0] < 0:
                raise error
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("error", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("step", ["_write", "_fsync", "_rename"])
@pytest.mark.parametrize("calls", [0, 1, 7])
def test_a_failed_write_in_the_second_checkpoint_is_loud_and_the_first_is_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, str],
    step: str,
    calls: int,
    error: OSError,
) -> None:
    if step == "_rename" and calls == 7:
        calls = 5  # a checkpoint has six: five files and the folder
    folder, countdown = tmp_path / "style", list[int]()
    # In step 3, after the first checkpoint; the next write of a file is the second checkpoint's.
    small.hook(lambda passes: countdown.append(calls) if passes == 2 + 3 else None)
    with monkeypatch.context() as patched:
        patched.setattr(writing, step, failing(getattr(writing, step), error, countdown))
        with pytest.raises(LorimerError, match=error.strerror):
            train(recipe(folder, *OVERRIDES))
    assert [place.name for place in list_checkpoints(folder / "checkpoints")] == ["step-000002"]
    assert newest_checkpoint(folder / "checkpoints") == folder / "checkpoints" / "step-000002"
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed" and error.strerror in status["newest"]["failed"]["error"]
    assert status["newest"]["checkpoint"]["step"] == 2
    assert not (folder / "adapter").exists()
    small.hook(None)
    train(load_recipe(folder / "recipe.yaml", (), {}), resume=folder)
    assert outcome(folder) == whole


def test_a_checkpoint_folder_that_cannot_be_made_is_loud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.hook(None)
    real = Path.mkdir

    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name.startswith(".unfinished"):
            raise READ_ONLY
        real(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(LorimerError, match=r"step-000002: the checkpoint could not be written.*Read-only"):
        train(recipe(tmp_path / "style", *OVERRIDES))


def test_a_log_that_cannot_be_written_is_loud_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, str]
) -> None:
    small.hook(None)
    folder = tmp_path / "style"
    real = events_module.Journal._write_status

    def full(self: Any) -> None:
        if self._status["step"] >= 4:
            raise FULL
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(events_module.Journal, "_write_status", full)
        with pytest.raises(LorimerError, match=r"log could not be written.*No space left"):
            train(recipe(folder, *OVERRIDES))
    train(load_recipe(folder / "recipe.yaml", (), {}), resume=folder)
    assert outcome(folder) == whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_really_full_device(tmp_path: Path) -> None:
    """No stand-ins: the system's own full device behind the log."""
    small.hook(None)
    folder = tmp_path / "style"

    def fill(passes: int) -> None:
        if passes == 2 + 1:
            (folder / ".status.json").unlink(missing_ok=True)
            (folder / ".status.json").symlink_to("/dev/full")

    small.hook(fill)
    with pytest.raises(LorimerError, match="No space left"):
        train(recipe(folder, *OVERRIDES))
