"""Measuring fairly: contenders in turn within each round, ratios within a round, medians over rounds.

The machine's speed drifts (other work, clocks, caches), so seconds of one contender are never set
against seconds of another that ran minutes apart. What is quoted is the median of ratios taken
within one round, with the quartiles beside it to tell how far to trust it.
"""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import json
import platform
import re
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

RESULTS = Path(__file__).parents[1] / "results"

T = TypeVar("T")


def interleave(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Contender -> what it returned in each round. Every round runs each once, beginning with another one,
    so that nobody always follows the same neighbour; a round before the first warms up."""
    results: dict[str, list[T]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            gc.disable()  # a collection in the middle would be billed to whoever runs
            try:
                result = contenders[name]()
            finally:
                gc.enable()
            if number:
                results[name].append(result)
    return results


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes, work queued on a GPU included."""
    _synchronise()
    start = time.perf_counter()
    work()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(left: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
    """left / right, round by round: {"median": ..., "quartiles": [first, third]}."""
    ratios = [a / b for a, b in zip(left, right, strict=True)]
    first, middle, third = statistics.quantiles(ratios, n=4, method="inclusive") if ratios[1:] else ratios * 3
    return {"median": round(middle, 3), "quartiles": [round(first, 3), round(third, 3)]}


def shown(figure: Mapping[str, Any] | None) -> str:
    """A ratio as tables show it, e.g. "1.31 (1.28–1.34)"; nothing where there is none."""
    if figure is None:
        return ""
    first, third = figure["quartiles"]
    return f"{figure['median']:.2f} ({first:.2f}–{third:.2f})"


def median(seconds: Sequence[float]) -> float:
    """The median, to four digits that mean something."""
    return float(f"{statistics.median(seconds):.4g}")


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the products in `work`, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class _Kept:
    """A tensor kept for the backward; weakly referenced, so that one dropped on the way does not count."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def count_saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that stand in memory for the backward once `forward` has returned the loss.

    Each storage counts once and whole, however many views of it are kept. Parameters and buffers of the
    model do not count: they are there anyway.
    """
    own = {_address(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        holder = _Kept(tensor.detach())  # an operation that keeps its own output would keep itself alive
        kept.add(holder)
        return holder

    def unpack(holder: _Kept) -> Tensor:
        return holder.tensor

    # Kernels that keep fewer tensors where nobody rewrites them may do so here: these hooks only look.
    pack.transparent = unpack.transparent = True  # type: ignore[attr-defined]
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = forward()
    storages = {_address(holder.tensor): holder.tensor.untyped_storage().nbytes() for holder in kept}
    del loss
    return sum(size for address, size in storages.items() if address not in own)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def count_peak_bytes(work: Callable[[], object]) -> int:
    """Memory that `work` takes at its highest, above what stands before it.

    On CUDA what torch allocates; on the CPU the process's resident memory, whose high-water mark Linux
    lets a process reset. Wants a process of its own, started with `MALLOC_MMAP_THRESHOLD_` set, so that
    what is freed goes back to the system and the mark tells of this work alone.

    Raises:
        OSError: the system has no /proc/self/clear_refs.
    """
    work()  # what libraries make once is not the work's own
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the mark falls to what is resident now
    work()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    mark = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(mark.split()[1]) * 1024 - before


def shared_copy(model: nn.Module) -> Any:
    """A copy with modules of its own and the same parameters, so that contenders share one frozen base."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def largest_difference(left: Tensor, right: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    scale = max(left.abs().max().item(), right.abs().max().item(), 1e-30)
    return float(f"{(left - right).abs().max().item() / scale:.2g}")


def require_agreement(name: str, difference: float, tolerance: float = 1e-4) -> None:
    """Stop where two contenders do not compute the same: their seconds would compare nothing.

    A lost scale or a missing adapter is off by far more than 1e-4, float32 in another order by far less.
    """
    if not difference <= tolerance:
        raise SystemExit(
            f"{name}: lorimer and PEFT differ by {difference}: not the same work, nothing measured"
        )


def conditions(rounds: int) -> dict[str, Any]:
    """What one needs to know to judge or repeat a result."""
    packages = ["torch", "peft", "transformers", "diffusers"]
    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def hardware() -> str:
    """The GPU's name, or the processor's with its cores and the instructions that decide its speed."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    name = named[1] if named else platform.processor() or platform.machine()
    instructions = torch.backends.cpu.get_cpu_capability() + (" and AMX" if "amx_tile" in text else "")
    return f"{name}, {psutil.cpu_count(logical=False)} cores, {instructions}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers stand to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in cells
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def write(result: Mapping[str, Any], folder: Path) -> Path:
    """The result as FOLDER/<benchmark>.json, without a date, so that equal results are equal files."""
    file = folder / f"{result['benchmark']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return file
