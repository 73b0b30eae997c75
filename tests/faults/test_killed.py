"""Real processes, really killed: whatever the moment, resuming gives the run that was not interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: being killed is not losing power, and disks take time."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


Serve = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Runs an action of tests/faults/forks.py in a server that lives as long as this module's tests."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.forks"],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdin is not None and server.stdout is not None
        write, read = server.stdin, server.stdout

        def act(folder: Path, action: str, **plan: Any) -> dict[str, Any]:
            print(json.dumps({"action": action, "root": str(folder), **plan}), file=write, flush=True)
            line = read.readline()
            assert line, "the server died; its error is above"
            result: dict[str, Any] = json.loads(line)
            return result

        yield act
        write.close()


@pytest.mark.parametrize("part", [0, 1])
def test_killed_at_every_write_sync_and_rename(serve: Serve, folder: Path, part: int) -> None:
    result = serve(folder, "kill_at_every_point", part=part, parts=2)
    assert {"write", "fsync", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "open"} <= set(
        result["points"]
    )
    assert result["points"].count("os.rename") > 15
    assert not result["failures"], json.dumps(result["failures"], indent=1)


def test_killed_at_random_times_again_and_again(serve: Serve, folder: Path) -> None:
    result = serve(folder, "kill_at_random_times", seeds=[1, 2, 3])
    assert result["failures"] == [] and result["deaths"] >= 6


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_signals_save_exit_130_and_resume_to_the_same(
    serve: Serve, folder: Path, number: int, workers: int
) -> None:
    result = serve(folder, "stop_by_signal", number=int(number), workers=workers)
    assert result["code"] == 130 and result["state"] == "interrupted"
    assert 20 <= result["stopped_at"] < 300
    assert result["again"] == 0 and result["equal"]


def test_two_processes_cannot_train_in_one_folder(serve: Serve, folder: Path) -> None:
    result = serve(folder, "two_in_one_folder")
    assert result == {"second": 2, "first_alive": True, "third": 130}
