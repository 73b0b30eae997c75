"""The Makefile and the CI entry say what they do, and every step they name exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.unit.docs.pages import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_says_what_there_is() -> None:
    ran = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    for target in ("demo", "test", "check", "clean"):
        assert f"make {target}" in ran.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_python_that_is_too_old_or_missing_is_named() -> None:
    """Nothing is made, and the message says how to name another."""
    command = ["make", "check", "PYTHON=/nowhere/python", "VENV=/nowhere/venv"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode != 0 and "make check PYTHON=" in ran.stderr


def test_ci_runs_the_checks_and_the_tests() -> None:
    entry = ROOT / ".ci" / "run"
    assert os.access(entry, os.X_OK)
    text = entry.read_text(encoding="utf-8")
    assert text.startswith("#!") and "set -euo pipefail" in text
    assert re.findall(r"^make ([\w-]+)$", text, re.MULTILINE) == ["check", "test-all"]
    assert re.search(r"^test-all: test$", MAKEFILE, re.MULTILINE)


def test_what_the_makefile_calls_is_there() -> None:
    for script in re.findall(r"scripts/\w+\.py", MAKEFILE):
        assert (ROOT / script).is_file()
    assert "--cov-fail-under=90" in MAKEFILE


def test_every_version_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert "torch==2.13.0" in pins
