"""HiRA: a low-rank matrix times the weight, entry by entry (Huang et al. 2025, ICLR, openreview TwJrTz9cRS).

    W' = W + (alpha / rank) · W * (B · A)        A: (rank, in), B: (out, rank)

The update has up to the weight's own rank with LoRA's parameters. A starts Kaiming-uniform and B at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lorimer.adapters._base import Adapter, Method, WeightSpec
from lorimer.adapters._starts import fill

if TYPE_CHECKING:
    from lorimer.adapters._state import LayerState


@dataclass(frozen=True)
class HiRA(Method):
    """A low-rank factor on every entry of the weight.

    Attributes:
        rank: of the factor, at least 1.
        alpha: the update is scaled by alpha / rank; None means alpha = rank, which is the paper's.
    """

    name: ClassVar[str] = "hira"
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "A": {"peft": "hira_A", "peft-embedding": "hira_embedding_A"},
        "B": {"peft": "hira_B", "peft-embedding": "hira_embedding_B"},
    }
    fast_tensors: ClassVar[frozenset[str]] = frozenset({"B"})
    rank_axes: ClassVar[Mapping[str, int]] = {"A": 0, "B": 1}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "HIRA"}
    peft_alpha: ClassVar[str] = ""
    peft_told_by_tensors: ClassVar[frozenset[str]] = frozenset({"init_weights", "hira_dropout"})

    rank: int = 32

    @classmethod
    def to_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        """Other programs know no alpha."""
        tensors = {**layer.tensors, "B": layer.tensors["B"] * layer.scale}
        return replace(layer, tensors=tensors, alpha=float(layer.rank))

    def build(self, spec: WeightSpec) -> HiRAAdapter:
        return HiRAAdapter(self, spec)


class HiRAAdapter(Adapter):
    """A and B for one weight."""

    method: HiRA

    def __init__(self, method: HiRA, spec: WeightSpec) -> None:
        super().__init__()
        self.method, self.scale, self.stacked = method, method.scale, len(spec.stack)
        self.A = spec.empty(method.rank, *spec.down_shape)
        self.B = spec.empty(spec.matrix_shape[0], method.rank, *spec.up_shape)

    @torch.no_grad()
    def start(self, weight: Callable[[], Tensor]) -> None:
        fill(
            "kaiming", self.A.flatten(1 + self.stacked), self.B.flatten(1 + self.stacked), weight, self.scale
        )

    def adapt(self, weight: Tensor) -> Tensor:
        factor = self.B.flatten(1 + self.stacked) @ self.A.flatten(1 + self.stacked)
        return torch.addcmul(weight, weight, factor, value=self.scale)
