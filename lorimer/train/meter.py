"""Sums between two lines of the log, kept on the device so that no step waits for them; and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """What the meter showed.

    Attributes:
        loss: mean loss of the examples since the last line, None where every step was skipped.
        skipped: steps so far whose loss or gradient was not finite; they changed nothing.
        in_a_row: how many of the last steps were such, without one in between that was not.
    """

    loss: float | None
    skipped: int
    in_a_row: int


class Meter:
    """Adds up losses. The sums are part of a checkpoint, so that a resumed log goes on as it would have."""

    def __init__(self, device: torch.device, saved: list[float] | None = None) -> None:
        *sums, in_a_row = saved or [0.0] * 4
        self._sums = torch.tensor(sums, device=device)  # loss · examples, examples, steps skipped
        self._in_a_row = torch.tensor(in_a_row, device=device)

    def add(self, loss: Tensor, examples: int, finite: Tensor) -> None:
        """Count one step: its mean loss over `examples`, and whether it was finite (both scalars)."""
        good = finite.to(loss.dtype)
        self._sums += torch.stack([torch.where(finite, loss, 0.0) * examples, good * examples, 1.0 - good])
        self._in_a_row = (self._in_a_row + 1.0) * (1.0 - good)

    def read(self) -> Reading:
        """The sums so far; waits for the device."""
        total, examples, skipped, in_a_row = self.state()
        return Reading(total / examples if examples else None, int(skipped), int(in_a_row))

    def restart(self) -> None:
        """Begin a new line of the log."""
        self._sums[:2] = 0.0

    def state(self) -> list[float]:
        """The sums, as `saved` takes them."""
        return [*self._sums.tolist(), self._in_a_row.item()]


class Clock:
    """How fast training goes, not counting what is done between steps."""

    def __init__(self) -> None:
        self.smooth_seconds = 0.0  # per step, over several laps
        self._started, self._aside, self._step = time.perf_counter(), 0.0, 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time within this context is not training."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._aside += time.perf_counter() - begin

    def restart(self, step: int) -> None:
        """Begin to measure at `step`."""
        self._started, self._aside, self._step = time.perf_counter(), 0.0, step

    def lap(self, step: int) -> float:
        """Seconds per step since the last lap; `smooth_seconds` follows."""
        now = (time.perf_counter() - self._started - self._aside) / max(step - self._step, 1)
        self.smooth_seconds = 0.7 * (self.smooth_seconds or now) + 0.3 * now
        self.restart(step)
        return now


def memory(device: torch.device) -> dict[str, Any]:
    """Bytes in use: the most that tensors took on a GPU, or what the process holds of main memory."""
    if device.type == "cuda":
        return {"memory_bytes": torch.cuda.max_memory_allocated(device), "memory_kind": "GPU memory at most"}
    return {"memory_bytes": psutil.Process().memory_info().rss, "memory_kind": "main memory"}
