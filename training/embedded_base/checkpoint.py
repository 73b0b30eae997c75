"""What every training run here needs: checkpoints that are whole or absent, averaged weights, a schedule."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write beside the place, sync, then rename: a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(whole, beside, metadata={"facts": json.dumps(facts)})
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts that ``save`` wrote."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return load_file(path), facts


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


class Average:
    """An exponential moving average of a model's weights; what is exported in the end."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the model; at first closely, since the first weights are worth nothing."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            self.tensors[name].lerp_(tensor, 1 - decay)


def learning_rate(peak: float, progress: float, warmup: float = 0.02, flat: float = 0.0) -> float:
    """Linear warm-up, then the peak until ``flat`` of the run, then a cosine down to 2 % of the peak."""
    if progress < warmup:
        return peak * progress / warmup
    fall = max(0.0, progress - flat) / (1 - flat)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(fall, 1.0))))
