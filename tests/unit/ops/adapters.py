"""Adapters off their start on a small model of every geometry, and what they really do to its weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import lorimer
from lorimer.adapters._base import Method
from lorimer.adapters._state import AdapterState
from lorimer.adapters.lora import LoRA

EVERY = ["linear", "conv", "grouped", "transposed", "embedding"]


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """One layer of each geometry, seeded; it is never run."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "linear": nn.Linear(12, 9),
            "conv": nn.Conv2d(4, 6, 3),
            "grouped": nn.Conv2d(4, 6, 3, groups=2),
            "transposed": nn.ConvTranspose2d(4, 6, 3),
            "embedding": nn.Embedding(11, 8),
        }
    ).to(dtype)


def trained(
    method: Method | None = None,
    seed: int = 1,
    targets: list[str] | None = None,
    dtype: torch.dtype = torch.float64,
    **options: object,
) -> AdapterState:
    """The state of an adapter whose tensors are all off their start."""
    adapter = lorimer.attach(
        network(dtype),
        method or LoRA(rank=3, alpha=5.0),
        targets or EVERY,
        **options,  # type: ignore[arg-type]
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return adapter.state()


def effects(state: AdapterState) -> dict[str, Tensor]:
    """Parameter -> what merging the adapter adds to it, in float64: the truth for every operation."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    lorimer.attach_state(model, state)
    model.double()
    lorimer.merge(model, keep_original=False)
    after = model.state_dict()
    return {name: after[name] - before[name] for name in before}


def combination(parts: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """Σ wᵢ · effectᵢ for each parameter."""
    return {
        name: sum((w * part[name] for w, part in zip(weights, parts, strict=True)), torch.zeros(()))
        for name in parts[0]
    }


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest ‖left - right‖ over the parameters, relative to the larger norm."""
    assert left.keys() == right.keys()
    return max(
        (left[name] - right[name]).norm().item()
        / max(left[name].norm().item(), right[name].norm().item(), 1e-12)
        if not (left[name] == right[name]).all()
        else 0.0
        for name in left
    )


def same_bits(left: AdapterState, right: AdapterState) -> bool:
    """Equal in everything, tensors to the bit."""
    if (left.method, left.config, left.components) != (right.method, right.config, right.components):
        return False
    if left.layers.keys() != right.layers.keys():
        return False
    return all(
        own.tensors.keys() == right.layers[path].tensors.keys()
        and all(torch.equal(tensor, right.layers[path].tensors[name]) for name, tensor in own.tensors.items())
        and (own.rank, own.alpha, own.groups) == (other.rank, other.alpha, other.groups)
        for path, own in left.layers.items()
        for other in [right.layers[path]]
    )
