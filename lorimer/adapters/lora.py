"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685).

    W' = W + (alpha / rank) · B · A        A: (rank, in), B: (out, rank)

A starts Kaiming-uniform and B at zero (section 4.1), so that training starts from the base model.
For a convolution the weight is the matrix (out, in / groups · prod(kernel)); A is kept in the shape
of `rank` filters and B in that of a 1 x 1 convolution, which are the shapes other programs read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorimer.adapters._base import MAX_RANK, Adapter, Method, WeightSpec
from lorimer.errors import UsageError
from lorimer.kernels.low_rank import low_rank_product

if TYPE_CHECKING:
    from lorimer.layers.geometry import Base


@dataclass(frozen=True)
class LoRA(Method):
    """Plain LoRA.

    Attributes:
        rank: the rank of the update, at least 1.
        alpha: the update is scaled by alpha / rank; None means alpha = rank.
    """

    name: ClassVar[str] = "lora"
    additive: ClassVar[bool] = True
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "A": {"peft": "lora_A.weight", "kohya": "lora_down.weight"},
        "B": {"peft": "lora_B.weight", "kohya": "lora_up.weight"},
    }
    fast_tensors: ClassVar[frozenset[str]] = frozenset({"B"})
    rank_axes: ClassVar[Mapping[str, int]] = {"A": 0, "B": 1}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "LORA"}

    def build(self, spec: WeightSpec) -> LoRAAdapter:
        return LoRAAdapter(self, spec)

    @classmethod
    def factors(cls, tensors: Mapping[str, Tensor], scale: float) -> tuple[Tensor, Tensor]:
        return scale * tensors["B"].flatten(1), tensors["A"].flatten(1)


class LoRAAdapter(Adapter):
    """A and B for one weight."""

    def __init__(self, method: LoRA, spec: WeightSpec) -> None:
        super().__init__()
        if not isinstance(method.rank, int) or not 1 <= method.rank <= MAX_RANK:
            raise UsageError(f"rank must be a whole number from 1 to {MAX_RANK}, not {method.rank!r}")
        if not math.isfinite(method.scaled_alpha):
            raise UsageError(f"alpha must be a finite number, not {method.alpha!r}")
        self.method = method
        self.scale = method.scaled_alpha / method.rank
        A_shape = (method.rank, *spec.down_shape)
        B_shape = (spec.matrix_shape[0], method.rank, *spec.up_shape)
        self.A = nn.Parameter(torch.empty(A_shape, dtype=spec.dtype, device=spec.device))
        self.B = nn.Parameter(torch.zeros(B_shape, dtype=spec.dtype, device=spec.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def adapt(self, weight: Tensor) -> Tensor:
        return weight + low_rank_product(self.A.flatten(1), self.B.flatten(1), self.scale)

    def forward(self, x: Tensor, base: Base, strength: float) -> Tensor | None:
        return base.low_rank(x, self.A, self.B, self.scale * strength)
