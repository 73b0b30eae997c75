"""Recurrent layers: torch's LSTM, GRU and RNN run from a list that they keep of their own parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def read_flat_weights(layer: Any) -> list[Tensor | None]:
    """The list as it must be for adapted values: had by reading each parameter anew."""
    return [getattr(layer, name, None) for name in layer._flat_weights_names]


def write_flat_weights(layer: Any, values: object) -> None:
    """What torch writes it built from what it read here, which may be adapted; keep the frozen ones."""
    layer.__dict__["_flat_weights"] = [layer._parameters.get(name) for name in layer._flat_weights_names]


def restore_flat_weights(layer: nn.Module) -> None:
    """Build the list again, for a layer that is no longer adapted."""
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()
