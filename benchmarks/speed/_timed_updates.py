"""Runs a training program in this process; notes when the adapter is updated, and how much memory it took.

    python -m benchmarks.speed._timed_updates REPORT STEPS PROGRAM ARGUMENTS...

PROGRAM is a script, or `lorimer`.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    report, steps, program, *arguments = sys.argv[1:]
    marks: list[float] = []

    def watched(update: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            result = update(*given, **named)
            _wait()
            if not marks:
                _reset_peak()
            marks.append(time.perf_counter())
            if len(marks) == int(steps):
                seconds = [after - before for before, after in pairwise(marks)]
                facts = {"seconds": seconds, "step_peak_bytes": _peak()}
                Path(report).write_text(json.dumps(facts), encoding="utf-8")
            return result

        return step

    sys.argv = [program, *arguments]
    if program == "lorimer":
        from lorimer.train import engine

        engine.take_step = watched(engine.take_step)  # not AdamW's step, which the dry run takes as well
        runpy.run_module("lorimer", run_name="__main__")
    else:
        from benchmarks.speed import _torchvision_stand_in

        _torchvision_stand_in.install()
        torch.optim.AdamW.step = watched(torch.optim.AdamW.step)  # type: ignore[method-assign]
        runpy.run_path(program, run_name="__main__")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    mark = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(mark.split()[1]) * 1024


if __name__ == "__main__":
    main()
