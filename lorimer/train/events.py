"""What a run says while it goes on: to programs in `events.jsonl` and `status.json`, and to people.

`events.jsonl` gets one JSON object a line, each with `event`, `time` (seconds since 1970) and `step`:
started, step, evaluation, preview, checkpoint, and last finished, interrupted or failed. `status.json`
holds state, step and steps, and under `newest` the newest event of each kind.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lorimer.errors import LorimerError
from lorimer.train.run_folder import RunFolder


class Journal:
    """Writes a run's events and status; where several processes train, only the first is `active`."""

    def __init__(self, folder: RunFolder, steps: int, active: bool = True) -> None:
        self._file: IO[str] | None = folder.events.open("a", encoding="utf-8") if active else None
        self._status_file = folder.status
        self._status: dict[str, Any] = {
            "state": "running",
            "step": 0,
            "steps": steps,
            "pid": os.getpid(),
            "newest": {},
        }

    def write(self, event: str, step: int, **values: Any) -> None:
        """Add an event; the status follows.

        Raises:
            LorimerError: the disk is full or the like.
        """
        if self._file is None:
            return
        entry = {"event": event, "time": round(time.time(), 3), "step": step, **values}
        self._status |= {"step": step, "updated": entry["time"]}
        self._status["newest"][event] = {"step": step, **values}
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()
            self._write_status()
        except OSError as error:
            raise LorimerError(
                f"{self._status_file.parent}: the log could not be written: {error}"
            ) from error

    def end(self, state: str, step: int, **values: Any) -> None:
        """The last event: finished, interrupted or failed."""
        self._status["state"] = state
        self.write(state, step, **values)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write_status(self) -> None:
        # Whole for any reader, but not synced: losing it in a power cut loses nothing.
        beside = self._status_file.with_name(".status.json")
        beside.write_text(json.dumps(self._status, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(self._status_file)


class Display:
    """Shows a run to a person: a moving bar on a terminal, plain lines elsewhere, both on standard error."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._steps = steps
        self._bar: Progress | None = None

    def start(self, lines: Iterable[str], step: int) -> None:
        """Print `lines`, then begin at `step`."""
        for line in lines:
            self.say(line)
        if self._console.is_terminal:
            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.add_task("", total=self._steps, completed=step)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def measured(self, step: int, values: dict[str, Any]) -> None:
        """Show a line of the log."""
        text = describe_step(values)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=text)
        else:
            self.say(f"step {step}/{self._steps}  {text}")

    def say(self, text: str) -> None:
        """Print a line for a person."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe_step(values: dict[str, Any]) -> str:
    """`loss 0.1234  rate 1.0e-03  3.2 steps/s  2 min left  1.2 GB`."""
    loss = "-" if values["loss"] is None else f"{values['loss']:.4f}"
    parts = [f"loss {loss}", f"rate {values['learning_rate']:.1e}"]
    parts.append(f"{values['steps_per_second']:.3g} steps/s")
    parts.append(f"{describe_seconds(values['seconds_left'])} left")
    parts.append(describe_bytes(values["memory_bytes"]))
    if values["skipped"]:
        parts.append(f"{values['skipped']} skipped: not finite")
    return "  ".join(parts)


def describe_seconds(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def describe_bytes(count: int) -> str:
    """`812 MB`, `3.1 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
