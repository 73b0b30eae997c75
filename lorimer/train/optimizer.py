"""Optimisers, and their state as tensors and JSON instead of a pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorimer.attachment.attached import AttachedAdapter
from lorimer.errors import FileFormatError
from lorimer.train.recipe import TrainSection
from lorimer.train.schedule import factor


def build_optimizer(adapter: AttachedAdapter, train: TrainSection) -> torch.optim.Optimizer:
    """The recipe's optimiser over the adapter's parameters; each group remembers its full rate.

    Both are fused: the whole update is one pass, and a step with `found_inf` set changes nothing, which
    spares the CPU waiting for the GPU to learn whether a gradient was finite.
    """
    groups = adapter.parameter_groups(train.learning_rate, train.fast_ratio)
    for group in groups:
        group["full_rate"] = group["lr"]
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[train.optimizer](groups, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, train: TrainSection, step: int) -> float:
    """Give every group its rate for `step`; returns the rate of the slowest group."""
    now = factor(train.schedule, step, train.steps, train.warmup_steps)
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * now
    return train.learning_rate * now


def skip_unless_finite(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Make the next `optimizer.step()` change nothing where `finite` (a scalar bool tensor) is false."""
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # read by fused optimisers


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """An optimiser's state dict as (tensors by name, plain data for JSON that refers to them).

    Tuples become lists, which optimisers take as well.
    """
    tensors: dict[str, Tensor] = {}

    def flat(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[place] = value.detach()
            return {"tensor": place}
        if isinstance(value, dict):
            return {"items": [[key, flat(item, f"{place}.{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [flat(item, f"{place}.{number}") for number, item in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{place}: an optimiser's {type(value).__name__} cannot be saved")

    return tensors, flat(state, "optimizer")


def unflatten_state(tensors: dict[str, Tensor], data: Any) -> Any:
    """The inverse of `flatten_state`.

    Raises:
        FileFormatError: the data is of another shape, or refers to a tensor that is not there.
    """
    if isinstance(data, list):
        return [unflatten_state(tensors, item) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        if "tensor" in data:
            return tensors[data["tensor"]]
        return {key: unflatten_state(tensors, item) for key, item in data["items"]}
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"the optimiser's state in the checkpoint is broken: {error}") from error
