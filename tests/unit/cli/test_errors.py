"""Every error on purpose is one clear message and the exit code of its class."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from lorimer import errors
from tests.unit.cli.running import lorimer


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.LorimerError, 1),
        (errors.UsageError, 2),
        (errors.RecipeError, 2),
        (errors.TargetError, 2),
        (errors.DataError, 3),
        (errors.FileFormatError, 3),
        (errors.MissingDependencyError, 4),
        (errors.Interrupted, 130),
        (PermissionError, 1),
    ],
)
def test_an_error_is_a_message_and_a_code(error: type[Exception], code: int) -> None:
    with mock.patch("lorimer.ops.doctor.examine", side_effect=error("the disk is on fire")):
        ran = lorimer("doctor")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err == "lorimer: the disk is on fire\n"


@pytest.mark.parametrize("arguments", [("--debug", "doctor"), ("doctor", "--debug")])
def test_debug_shows_where_it_arose(arguments: tuple[str, ...]) -> None:
    with mock.patch("lorimer.ops.doctor.examine", side_effect=errors.DataError("the disk is on fire")):
        ran = lorimer(*arguments)
    assert ran.code == 3
    assert "Traceback" in ran.err and ran.err.endswith("lorimer: the disk is on fire\n")


def test_a_fault_of_lorimer_itself_is_not_dressed_up() -> None:
    with (
        mock.patch("lorimer.ops.doctor.examine", side_effect=ZeroDivisionError),
        pytest.raises(ZeroDivisionError),
    ):
        lorimer("doctor")


def test_ctrl_c_leaves_with_130() -> None:
    with mock.patch("lorimer.ops.doctor.examine", side_effect=KeyboardInterrupt):
        assert lorimer("doctor").code == 130


def test_an_unknown_command_is_a_usage_error() -> None:
    assert lorimer("trane").code == 2


def test_train_wants_a_recipe_or_a_run(tmp_path: Path) -> None:
    ran = lorimer("train")
    assert ran.code == 2 and "--resume RUN" in ran.err
    ran = lorimer("train", "--resume", tmp_path / "nothing")
    assert ran.code == 2 and f"{tmp_path / 'nothing'} holds no run" in ran.err


def test_inspecting_nothing_names_the_path(tmp_path: Path) -> None:
    ran = lorimer("inspect", tmp_path / "missing.safetensors")
    assert ran.code == 3 and "missing.safetensors" in ran.err
