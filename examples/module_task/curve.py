"""A model, data and a loss of one's own for the task `module`; recipe.yaml names these functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def build_model() -> nn.Module:
    """A network that knows sin(x). It stands for your pretrained model; yours would load its weights here.

    It must return the same weights every time, since a resumed run builds it again.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        x = torch.linspace(-math.pi, math.pi, 256).unsqueeze(1)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(300):
            loss = nn.functional.mse_loss(model(x), x.sin())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def points(count: int, seed: int) -> TensorDataset:
    """`count` points of another curve, |sin(x)|, which the adapter is to learn."""
    x = (torch.rand(count, 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * math.pi
    return TensorDataset(x, x.sin().abs())


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """The mean absolute error of one batch."""
    x, y = batch
    return nn.functional.l1_loss(model(x), y)
