"""The largest adapter that fits: targets and ranks for so many bytes of file, or of memory in training."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.adapters._base import Method
from lorimer.adapters._state import AdapterState, LayerState
from lorimer.adapters.lora import LoRA
from lorimer.attachment.attach import attach, detach
from lorimer.attachment.survey import survey
from lorimer.attachment.targets import Targets, select
from lorimer.errors import LorimerError, UsageError
from lorimer.ops._costs import Costs
from lorimer.ops.files import write

Run = Callable[[nn.Module], Tensor]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_TRIALS = 20  # of writing a file that turned out too large


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes.

    Attributes:
        weights: parameters and buffers of the model.
        adapter: values, gradients and the optimiser's averages of the adapter.
        activations: what the backward pass keeps of the forward pass.
        measured: activations were measured in a step on this machine; otherwise they are a rough estimate.
    """

    weights: int
    adapter: int
    activations: int
    measured: bool

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations


@dataclass(frozen=True)
class Budget:
    """What fits.

    Attributes:
        method: the method at the rank that most layers have.
        ranks: path -> rank of every layer that is adapted.
        dropped: targets that had to be left out.
        limit: the bytes that were allowed.
        file_bytes: size of the file, for a budget in bytes, without facts such as a title.
        memory: what training takes, for a budget in memory.
    """

    method: Method
    ranks: dict[str, int]
    dropped: tuple[str, ...]
    limit: int
    file_bytes: int | None = None
    memory: Memory | None = None

    def arguments(self) -> dict[str, Any]:
        """What to attach with: `lorimer.attach(model, **budget.arguments())`."""
        others = sorted({rank for rank in self.ranks.values() if rank != self.method.rank})
        named = {rank: [path for path, own in self.ranks.items() if own == rank] for rank in others}
        patterns = {_naming(paths): rank for rank, paths in named.items()}
        return {"method": self.method, "targets": _naming(list(self.ranks)), "rank_pattern": patterns}

    def lines(self) -> list[str]:
        """Lines for people."""
        ranks = sorted(set(self.ranks.values()))
        span = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
        lines = [f"{len(self.ranks)} layers at {span}, {len(self.dropped)} targets left out"]
        if self.file_bytes is not None:
            lines.append(f"the file takes {self.file_bytes:,} of {self.limit:,} bytes")
        if self.memory is not None:
            told = self.memory
            how = "measured" if told.measured else "a rough estimate; pass run= to measure"
            lines += [
                f"training takes about {told.total:,} of {self.limit:,} bytes",
                f"  weights      {told.weights:,}",
                f"  adapter      {told.adapter:,}  with gradients and the optimiser's averages",
                f"  activations  {told.activations:,}  {how}",
            ]
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def budget(
    model: nn.Module,
    method: Method | None = None,
    targets: Targets = "all-linear",
    *,
    exclude: Targets = (),
    bytes: int | str | None = None,
    memory: int | str | None = None,
    format: str = "peft",
    dtype: torch.dtype | None = None,
    run: Run | None = None,
    positions: int | None = None,
    optimizer_averages: int = 2,
    max_rank: int = 256,
) -> Budget:
    """Targets and ranks for "at most 2 MB" of file or "at most 8 GB" of memory.

    All targets get one rank, as large as fits; what is left raises it by one where a rank covers most
    weights. Where even rank 1 for all is too much, the targets in which it covers fewest are left out.

    Args:
        method: by default LoRA with alpha = rank; its rank is chosen here.
        targets, exclude: see `lorimer.attachment.targets`.
        bytes: size of the saved file: a number, or text such as "2 MB" or "500 KiB". Files of the chosen
            adapter are really written to a temporary folder and measured.
        format, dtype: of the file, as in `lorimer.save`.
        memory: of training: weights, adapter with gradients and optimiser, and activations.
        run: one forward pass as in training, returning the loss: activations are then measured in it.
        positions: without `run`, for a rough estimate: tokens or pixels in one batch.
        optimizer_averages: numbers that the optimiser keeps for each parameter; Adam keeps 2.
        max_rank: no layer gets more.

    Raises:
        UsageError: not just one of `bytes` and `memory`; a size that is none; nothing to tell activations by.
        TargetError: a target matches nothing, or something that cannot be adapted.
        LorimerError: not even rank 1 on one layer fits.
    """
    if (bytes is None) == (memory is None):
        raise UsageError("give one budget: bytes= for the file, or memory= for training")
    method = method or LoRA()
    sites = select(survey(model), targets, exclude)
    dear = Costs(method, sites, None if bytes is None else dtype, max_rank)
    if bytes is not None:
        limit = size_in_bytes(bytes)
        ranks, size = _fitting_file(dear, limit, format, dtype)
        return _told(dear, ranks, limit, file_bytes=size)
    limit = size_in_bytes(memory or 0)
    if run is None and positions is None:
        raise UsageError("activations: pass run= to measure them in a step, or positions= to estimate them")
    ranks, told = _fitting_memory(model, dear, limit, run, positions or 0, 2 + optimizer_averages)
    return _told(dear, ranks, limit, memory=told)


def size_in_bytes(size: int | str) -> int:
    """2 MB as 2,000,000 and 2 MiB as 2,097,152.

    Raises:
        UsageError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
    if match is None or match[2].lower() not in _UNITS or float(match[1]) <= 0:
        raise UsageError(f"{size!r} is no size; write for example '2 MB', '500 KiB' or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _fitting_file(
    costs: Costs, limit: int, format: str, dtype: torch.dtype | None
) -> tuple[dict[str, int], int]:
    """(ranks, bytes of the file that was written with them). What a file holds beside the tensors is learned
    from writing it."""
    room = float(limit)
    for _ in range(_TRIALS):
        ranks = costs.fitting(room)
        if not ranks:
            break
        size = _written(costs, ranks, format, dtype)
        if size <= limit:
            return ranks, size
        room = min(room, costs.total(ranks)) - (size - limit)
    raise LorimerError(f"not even rank 1 on one layer fits into a file of {limit:,} bytes; allow more")


def _written(costs: Costs, ranks: Mapping[str, int], format: str, dtype: torch.dtype | None) -> int:
    """Bytes of the file, or of all files in the folder, of an adapter of zeros."""
    layers: dict[str, LayerState] = {}
    for path, rank in ranks.items():
        site = costs.sites[path]
        geometry = site.geometry(site.layer, site.parameter)
        spec, method = geometry.spec(), costs.at(rank)
        made = method.build(replace(spec, device=torch.device("meta"))).state_dict()
        tensors = {name: torch.zeros(each.shape, dtype=each.dtype) for name, each in made.items()}
        layers[path] = LayerState(
            tensors, method.rank, method.scaled_alpha, spec.groups, len(spec.stack), geometry.file_kind()
        )
    state = AdapterState(costs.method.name, layers, costs.method.config())
    with tempfile.TemporaryDirectory() as folder:
        path_ = write(state, Path(folder) / "adapter.safetensors", format=format, dtype=dtype)
        return sum(file.stat().st_size for file in (path_, *path_.rglob("*")) if file.is_file())


def _fitting_memory(
    model: nn.Module, costs: Costs, limit: int, run: Run | None, positions: int, copies: int
) -> tuple[dict[str, int], Memory]:
    """(ranks, what training takes with them): activations grow a little with the ranks, so they are looked at
    again until both fit."""
    weights = _storages([*model.parameters(), *model.buffers()])
    activations = _estimated_activations(model, positions) if run is None else 0
    room = float(limit - weights - activations)
    for _ in range(_TRIALS):
        ranks = costs.fitting(room / copies)
        if not ranks:
            break
        if run is not None:
            activations = _measured_activations(model, costs, ranks, run)
        told = Memory(weights, copies * costs.total(ranks), activations, run is not None)
        if told.total <= limit:
            return ranks, told
        room = min(room, told.adapter) - (told.total - limit)
    raise LorimerError(
        f"not even rank 1 on one layer fits into {limit:,} bytes of training: the weights take {weights:,} "
        f"and activations {activations:,}; allow more, use a smaller batch, or gradient checkpointing"
    )


def _measured_activations(model: nn.Module, costs: Costs, ranks: Mapping[str, int], run: Run) -> int:
    """Bytes that the backward pass of one step would find kept, each storage once, parameters aside."""
    told = _told(costs, dict(ranks), 0)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    name = "budget_trial"
    adapter = attach(model, name=name, **told.arguments())
    own |= {parameter.untyped_storage().data_ptr() for parameter in adapter.parameters()}
    try:
        with _kept_random_state(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run(model)
    finally:
        detach(model, name)
    return sum(kept.values())


def _estimated_activations(model: nn.Module, positions: int) -> int:
    """Inputs and outputs of every layer that can be adapted, kept once at each position; attention's weights
    and all else are not counted."""
    width = 0
    for site in survey(model).sites.values():
        geometry = site.geometry(site.layer, site.parameter)
        if geometry.called and geometry.kind == "matrix":
            width += sum(geometry.spec().matrix_shape) * geometry.weight.dtype.itemsize
    return positions * width


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """A trial draws what it likes; what comes after draws as if there had been none."""
    with torch.random.fork_rng():
        yield


def _storages(tensors: list[Tensor]) -> int:
    """Bytes of the distinct storages behind tensors; on the meta device each tensor has its own."""
    storages = {id(tensor): tensor.untyped_storage() for tensor in tensors}
    return sum({each.data_ptr() or key: each.nbytes() for key, each in storages.items()}.values())


def _told(costs: Costs, ranks: dict[str, int], limit: int, **facts: Any) -> Budget:
    every = list(ranks.values())
    common = max(sorted(set(every)), key=every.count)
    dropped = tuple(path for path in costs.sites if path not in ranks)
    return Budget(costs.at(common), ranks, dropped, limit, **facts)


def _naming(paths: list[str]) -> str:
    """The target that names just these paths."""
    return "re:" + "|".join(re.escape(path) for path in paths)
