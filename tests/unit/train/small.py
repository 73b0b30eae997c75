"""A model, data and losses so small that a run takes a blink, for recipes to name."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from lorimer.train.recipe import Recipe, load_recipe

HERE = "tests.unit.train.small"

# What a test wants to happen inside the loss of the n-th pass since it was set.
on_pass: Callable[[int], None] | None = None
passes = 0


def hook(action: Callable[[int], None] | None) -> None:
    """Call `action(n)` at the n-th training pass (from 1) from now on."""
    global on_pass, passes
    on_pass, passes = action, 0


def net() -> nn.Module:
    """6 -> 5 -> 1 with dropout between."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 1))


def plain_net() -> nn.Module:
    """The same without anything random, in float64, so that sums can be compared closely."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def points(count: int = 21, dtype: str = "float32") -> Dataset[Any]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 6, generator=generator).to(getattr(torch, dtype))
    return TensorDataset(x, x.sum(1, keepdim=True))


def blank_points() -> Dataset[Any]:
    return TensorDataset(torch.zeros(5, 6), torch.zeros(5, 1))


class RestlessPoints(Dataset[Any]):
    """Points that are moved a little on each reading, by all three random generators."""

    def __init__(self, count: int) -> None:
        self.points = points(count)

    def __len__(self) -> int:
        return len(self.points)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.points[index]
        return x + 0.1 * torch.randn(6) + random.random() * 0.1 + float(np.random.rand()) * 0.1, y


def restless_points(count: int = 21) -> Dataset[Any]:
    return RestlessPoints(count)


def noisy_loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean squared error with noise on the input, and the hook."""
    global passes
    if model.training:
        passes += 1
        if on_pass is not None:
            on_pass(passes)
    x, y = batch
    return ((model(x + 0.1 * torch.randn_like(x)) - y) ** 2).mean()


def recipe(output: Path, *overrides: str, **sections: Any) -> Recipe:
    """A recipe over the functions above; `train={...}` and the like replace sections."""
    values = {
        "task": "module",
        "model": f"{HERE}:net",
        "data": {"dataset": f"{HERE}:restless_points"},
        "objective": {"loss": f"{HERE}:noisy_loss"},
        "adapter": {"rank": 2},
        "train": {"steps": 8, "batch_size": 4, "learning_rate": 0.01, "log_every": 2, "checkpoint_every": 0},
        "output": str(output),
        **sections,
    }
    return load_recipe(values, overrides, {})
