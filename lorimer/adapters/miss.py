"""MiSS: one small matrix shared by all shards of the input (Kang & Yin 2024, arXiv 2409.15371).

    W' = W + (alpha / rank) · Dᵀ · S        D: (rank, out); S: (rank, in), 1 where column mod rank = row

S cuts the input into shards of `rank` entries and adds them up, so that only D is learned, from zero. Of the
methods younger than LoRA it is the one that takes nothing away: half of LoRA's parameters, nothing random,
the backward pass needs S·x alone, the update is a plain low-rank one (so that it merges, mixes in a batch and
converts to LoRA exactly), and PEFT reads it (its `init_weights=True`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorimer.adapters._base import Adapter, LowRankUpdate, Method, WeightSpec, training_only
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.adapters._state import LayerState


@dataclass(frozen=True)
class MiSS(Method):
    """One matrix shared by all shards of the input.

    Attributes:
        rank: size of a shard, at most the layer's inputs.
        alpha: the update is scaled by alpha / rank; None means alpha = rank, which is the paper's.
        dropout: in training, the share of the input that the update does not see.
    """

    name: ClassVar[str] = "miss"
    additive: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {"D": {"peft": "miss_block"}}
    rank_axes: ClassVar[Mapping[str, int]] = {"D": 0}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "MISS"}
    peft_alpha: ClassVar[str] = ""
    peft_told_by_tensors: ClassVar[frozenset[str]] = frozenset({"init_weights", "mini_r", "miss_dropout"})

    rank: int = 64
    dropout: float = training_only(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")

    @classmethod
    def to_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        """Other programs know no alpha."""
        return replace(layer, tensors={"D": layer.tensors["D"] * layer.scale}, alpha=float(layer.rank))

    def build(self, spec: WeightSpec) -> MiSSAdapter:
        return MiSSAdapter(self, spec)


class MiSSAdapter(Adapter):
    """D for one weight."""

    method: MiSS
    S: Tensor

    def __init__(self, method: MiSS, spec: WeightSpec) -> None:
        super().__init__()
        out, into = spec.matrix_shape
        if method.rank > into:
            raise UsageError(f"rank must be at most {into}, the weight's columns, not {method.rank}")
        self.method, self.spec, self.scale = method, spec, method.scale
        self.D = spec.empty(method.rank, out)
        shards = sum_of_shards(method.rank, into).to(spec.device, spec.dtype)
        self.register_buffer("S", shards, persistent=False)

    def start(self, weight: Callable[[], Tensor]) -> None:
        nn.init.zeros_(self.D)

    def adapt(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.D.mT @ self.S

    def low_rank(self) -> LowRankUpdate:
        A, up = self.S.unflatten(-1, self.spec.down_shape), self.D.mT
        dropout = self.method.dropout if self.training else 0.0
        return LowRankUpdate(A, up.reshape(*up.shape, *self.spec.up_shape), self.scale, dropout)


def sum_of_shards(rank: int, into: int) -> Tensor:
    """S (rank, in): identities side by side, the last one cut off where the rank does not divide `into`."""
    return torch.eye(rank).repeat(1, -(-into // rank))[:, :into]
