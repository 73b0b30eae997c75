"""The command line answers at once, and says what it can do."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

import lorimer as package
from tests.unit.cli.running import lorimer

COMMANDS = [
    *("demo", "train", "check", "control", "plot", "sample", "grid", "merge", "convert"),
    *("extract", "resize", "compose", "analyse", "inspect", "doctor"),
]
HEAVY = ["torch", "diffusers", "transformers", "accelerate", "numpy", "PIL"]

_PROGRAM = """
import sys
from lorimer.cli import main
sys.argv = ["lorimer", *sys.argv[1:]]
try:
    main()
finally:
    print("\\nMODULES", *{name.split(".")[0] for name in sys.modules})
"""


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    start = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    seconds = time.perf_counter() - start  # shown, not asserted: the machine may be busy
    print(f"lorimer {' '.join(arguments)}: {seconds:.2f} s with coverage measured")
    loaded = set(ran.stdout.rsplit("MODULES", 1)[1].split())
    assert not loaded & set(HEAVY)


def test_help_names_every_command() -> None:
    ran = lorimer("--help")
    assert ran.code == 0
    assert all(f"  {command} " in ran.out for command in COMMANDS)
    assert "..." not in ran.out.split("Commands:")[1]  # every line fits


def test_without_arguments_it_shows_the_help() -> None:
    assert "Commands:" in lorimer().out + lorimer().err


def test_version() -> None:
    assert lorimer("--version").out.strip() == f"lorimer {package.__version__}"


def test_module_and_command_are_the_same() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "lorimer", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert package.__version__ in ran.stdout


def test_doctor_as_json_and_for_people() -> None:
    health = json.loads(lorimer("doctor", "--json").out)
    assert health["works"] and health["lorimer"] == package.__version__
    assert any(found["name"] == "torch" and found["fits"] for found in health["packages"]["required"])
    text = lorimer("doctor").out
    assert "torch" in text and "cpu" in text
