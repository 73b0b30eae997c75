"""Two processes that train together are one process that accumulates twice as much, to the bit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorimer.train.engine import train
from tests.faults.forks import outcome
from tests.unit.train import small
from tests.unit.train.small import recipe

ROOT = Path(__file__).parents[2]
OVERRIDES = ("train.steps=7", "train.checkpoint_every=3", "train.batch_size=2", "train.log_every=2")


def run_alone(folder: Path) -> None:
    small.hook(None)
    train(recipe(folder, *OVERRIDES, "train.gradient_accumulation_steps=2"))


def run_together(folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Start two processes as `accelerate launch` does, and wait for both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    common |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    program = (
        "from pathlib import Path; from tests.faults.test_two_processes import *; "
        f"train(recipe(Path({str(folder)!r}), *OVERRIDES))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without it")
def test_two_processes_are_one_that_accumulates(tmp_path: Path) -> None:
    done = run_together(tmp_path / "two" / "style")
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    run_alone(tmp_path / "one" / "style")
    assert outcome(tmp_path / "two" / "style") == outcome(tmp_path / "one" / "style")
    assert "step 2/7" in done[0].stderr and "step 2/7" not in done[1].stderr  # one of them speaks
