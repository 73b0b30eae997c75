"""Requests by file: what they do, and that nothing hostile in the folder does anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorimer.train import control as control_module
from lorimer.train.checkpoint import list_checkpoints
from lorimer.train.control import Control
from lorimer.train.engine import train
from tests.unit.train import small
from tests.unit.train.small import recipe
from tests.unit.train.test_engine import events


def test_a_checkpoint_can_be_asked_for(tmp_path: Path) -> None:
    small.hook(lambda n: (tmp_path / "run" / "control" / "checkpoint").touch() if n == 2 + 3 else None)
    train(recipe(tmp_path / "run"))
    assert [place.name for place in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step-000003",
        "step-000008",
    ]
    assert not list((tmp_path / "run" / "control").iterdir())


def test_a_preview_can_be_asked_for(tmp_path: Path) -> None:
    small.hook(lambda n: (tmp_path / "run" / "control" / "preview").touch() if n == 2 + 3 else None)
    train(recipe(tmp_path / "run"))
    assert [event["step"] for event in events(tmp_path / "run", "preview")] == [3]


def test_a_request_during_the_last_step_does_not_call_a_finished_run_stopped(tmp_path: Path) -> None:
    small.hook(lambda n: (tmp_path / "run" / "control" / "stop").touch() if n == 2 + 8 else None)
    assert train(recipe(tmp_path / "run")).steps == 8


def test_nothing_but_plain_files_of_known_names_counts(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    folder = tmp_path / "control"
    folder.mkdir()
    (folder / "stop").symlink_to(target)
    (folder / "checkpoint").mkdir()
    os.mkfifo(folder / "preview")
    (folder / "rm -rf").touch()
    (folder / "../escape").touch()
    control = Control(folder)
    assert control.requests() == set()
    control.clear()
    assert target.read_text() == "mine" and len(list(folder.iterdir())) == 4


def test_a_file_s_content_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "stop").write_bytes(b"\xff" * 100)
    (tmp_path / "stop").chmod(0)
    assert Control(tmp_path).requests() == {"stop"}
    assert not (tmp_path / "stop").exists()


def test_requests_of_an_earlier_process_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    control = Control(tmp_path)
    control.clear()
    assert control.requests() == set()


def test_the_folder_is_looked_into_a_few_times_a_second_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_SECONDS_BETWEEN_LOOKS", 1000.0)
    control = Control(tmp_path)
    control.requests()
    (tmp_path / "stop").touch()
    assert control.requests() == set()
