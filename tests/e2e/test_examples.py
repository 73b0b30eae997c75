"""The examples are programs that work, run as a person runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(*arguments: object, cwd: Path) -> str:
    ran = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


def test_any_module(tmp_path: Path) -> None:
    """The loss falls, and the program's own claims hold, which it asserts before it prints them."""
    printed = _run(EXAMPLES / "any_module.py", cwd=tmp_path)
    losses = [float(value) for value in re.findall(r"step +\d+  loss ([\d.]+)", printed)]
    assert len(losses) == 7 and losses[-1] < losses[0] / 100
    for claim in ("B starts at zero", "base is untouched", "merged", "444 numbers were trained beside 601"):
        assert claim in printed
    assert not list(tmp_path.iterdir())


def test_module_task(tmp_path: Path) -> None:
    """The recipe trains, and the README's program loads what it wrote."""
    folder = tmp_path / "module_task"
    shutil.copytree(EXAMPLES / "module_task", folder)
    printed = _run("-m", "lorimer", "train", "recipe.yaml", "train.log_every=400", cwd=folder)
    losses = [float(value) for value in re.findall(r"validation_loss ([\d.]+)", printed)]
    assert len(losses) == 5 and losses[-1] < losses[0] / 10
    readme = (folder / "README.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert program is not None
    _run("-c", program[1], cwd=folder)
