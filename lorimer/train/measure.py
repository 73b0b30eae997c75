"""What a training step takes of memory: its weights, its optimiser, its activations."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from lorimer.train.events import describe_bytes

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
NEARLY_FULL = 0.9


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes on its device.

    Attributes:
        weights: of the frozen model, where it lies while training steps run.
        adapter: of what trains, and its gradients.
        optimizer: of the optimiser's state and averages: measured on tensors of the same shapes.
        activations: the most that a forward and backward pass added: measured on a dry one.
        other: the program itself, its libraries and the data, on a CPU.
        limit: what the device has.
        kind: what was measured, for people.
    """

    weights: int
    adapter: int
    optimizer: int
    activations: int
    other: int
    limit: int
    kind: str

    @property
    def total(self) -> int:
        """The most that a step is expected to take."""
        return self.weights + self.adapter + self.optimizer + self.activations + self.other

    @property
    def nearly_full(self) -> bool:
        """Whether that is near the limit or over it."""
        return self.total > NEARLY_FULL * self.limit

    def line(self) -> str:
        """For people."""
        parts = [
            f"weights {describe_bytes(self.weights)}",
            f"adapter and gradients {describe_bytes(self.adapter)}",
            f"optimiser {describe_bytes(self.optimizer)}",
            f"activations {describe_bytes(self.activations)}",
            *([f"program and data {describe_bytes(self.other)}"] if self.other else []),
        ]
        return f"{describe_bytes(self.total)} {self.kind} of {describe_bytes(self.limit)}: {', '.join(parts)}"


@dataclass
class Peak:
    """What was in use before and at most during a stretch of work; `at_most` is set when it ends."""

    before: int
    at_most: int = field(default=0)


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Measure the most memory in use within this context: of tensors on a GPU, else of the process.

    Linux counts anew on request; else the most that the process ever took stands in, an upper bound.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        found = Peak(torch.cuda.memory_allocated(device))
    else:
        found = Peak(psutil.Process().memory_info().rss)
        with contextlib.suppress(OSError):  # not Linux, or not allowed to
            _CLEAR.write_text("5")  # resets VmHWM, see proc(5)
    try:
        yield found
    finally:
        now = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _process_peak()
        found.at_most = max(now, found.before)


def limit(device: torch.device) -> int:
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _process_peak() -> int:
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
    memory = psutil.Process().memory_info()
    if sys.platform == "win32":
        return int(memory.peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
