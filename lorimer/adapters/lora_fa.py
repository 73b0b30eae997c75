"""LoRA-FA: LoRA whose A stays as it started (Zhang et al. 2023, arXiv 2308.03303, equation 4).

    W' = W + (alpha / rank) · B · A        A: (rank, in), frozen; B: (out, rank), trained

The gradient of B needs A·x alone, so that of each layer's input nothing is kept for the backward pass. The
tensors are LoRA's: to other programs a file of it is LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorimer.adapters._base import WeightSpec
from lorimer.adapters.lora import LoRA, LoRAAdapter


@dataclass(frozen=True)
class LoRAFA(LoRA):
    """LoRA with A frozen at its start.

    Attributes: as in `LoRA`.
    """

    name: ClassVar[str] = "lora-fa"

    def build(self, spec: WeightSpec) -> LoRAFAAdapter:
        return LoRAFAAdapter(self, spec)


class LoRAFAAdapter(LoRAAdapter):
    """LoRA's adapter, with A a buffer: saved, and not trained."""

    def __init__(self, method: LoRAFA, spec: WeightSpec) -> None:
        super().__init__(method, spec)
        A = self.A.detach()
        del self.A
        self.register_buffer("A", A)
