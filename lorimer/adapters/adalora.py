"""AdaLoRA: an update in the form of a singular value decomposition whose rank is shared out among layers
while training (Zhang et al. 2023, arXiv 2303.10512).

    W' = W + (alpha / rank) · B · diag(E) · A        A: (rank, in), E: (rank, 1), B: (out, rank)

A and B start normal, E at zero. Which entries of E may differ from zero is decided by `_rank_allocator.py`;
the scale stays that of the rank at the start. A and B are kept as matrices for convolutions too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn

from lorimer.adapters._base import Adapter, LowRankUpdate, Method, WeightSpec, training_only
from lorimer.adapters._rank_allocator import RankAllocator, Triplets, schedule
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.adapters._controller import Controller
    from lorimer.adapters._state import LayerState

_DEVIATION = 0.02  # of A and B at the start, as in the authors' code


@dataclass(frozen=True)
class AdaLoRA(Method):
    """An update whose rank is shared out among layers while training.

    Attributes:
        rank: of each layer at the start; one and a half times the target leaves a choice.
        alpha: the update is scaled by alpha / rank; None means alpha = rank.
        dropout: in training, the share of the input that the update does not see.
        target_rank: mean rank of a layer at the end; None means two thirds of `rank`.
        warmup: share of the steps before ranks are cut.
        settle: share of the steps, at the end, after ranks are settled.
        interval: steps between two allocations.
        importance_smoothing, uncertainty_smoothing: weight of the past in what decides, below 1.
        orthogonality: weight of the penalty that keeps A and B near orthonormal.
    """

    name: ClassVar[str] = "adalora"
    additive: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "A": {"peft": "lora_A"},
        "E": {"peft": "lora_E"},
        "B": {"peft": "lora_B"},
    }
    fast_tensors: ClassVar[frozenset[str]] = frozenset({"B"})
    rank_axes: ClassVar[Mapping[str, int]] = {"A": 0, "E": 0, "B": 1}

    dropout: float = training_only(0.0)
    target_rank: int | None = training_only(None)
    warmup: float = training_only(0.1)
    settle: float = training_only(0.3)
    interval: int = training_only(10)
    importance_smoothing: float = training_only(0.85)
    uncertainty_smoothing: float = training_only(0.85)
    orthogonality: float = training_only(0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dropout", "importance_smoothing", "uncertainty_smoothing", "warmup", "settle"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError(f"{name} must be at least 0 and below 1, not {getattr(self, name)!r}")
        if self.warmup + self.settle >= 1.0:
            raise UsageError("warmup and settle leave no steps in which to cut ranks; make them smaller")
        if self.interval < 1 or self.orthogonality < 0.0:
            raise UsageError("interval must be at least 1, and orthogonality not below 0")
        if self.target_rank is not None and self.target_rank < 1:
            raise UsageError(f"target_rank must be at least 1, not {self.target_rank!r}")

    def build(self, spec: WeightSpec) -> AdaLoRAAdapter:
        return AdaLoRAAdapter(self, spec)

    def controller(self, adapters: Mapping[str, Adapter], steps: int) -> Controller:
        triplets = cast(Mapping[str, Triplets], adapters)
        target = max(1, round(self.rank * 2 / 3)) if self.target_rank is None else self.target_rank
        ranks = [each.E.numel() for each in triplets.values()]  # a stack's matrices count singly
        wanted = sum(min(each.E.shape[-2], target) * each.E[..., 0, 0].numel() for each in triplets.values())
        plan = schedule(sum(ranks), wanted, steps, self.warmup, self.settle, self.interval)
        smoothing = (self.importance_smoothing, self.uncertainty_smoothing)
        return RankAllocator(triplets, plan, smoothing, self.orthogonality)

    @classmethod
    def factors(cls, layer: LayerState, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        A, E, B = (layer.tensors[name] for name in ("A", "E", "B"))
        alive = (E != 0).reshape(-1, E.shape[-2]).any(0)  # in any matrix of a stack
        alive[0] |= not alive.any()  # a product of rank 0 is none that anybody reads
        return layer.scale * B[..., alive], (E * A)[..., alive, :]


class AdaLoRAAdapter(Adapter):
    """A, E and B for one weight."""

    method: AdaLoRA

    def __init__(self, method: AdaLoRA, spec: WeightSpec) -> None:
        super().__init__()
        self.method, self.scale = method, method.scale
        self.down_shape, self.up_shape = spec.down_shape, spec.up_shape
        rows, columns = spec.matrix_shape
        self.A = spec.empty(method.rank, columns)
        self.E = spec.empty(method.rank, 1)
        self.B = spec.empty(rows, method.rank)

    def start(self, weight: Callable[[], Tensor]) -> None:
        nn.init.normal_(self.A, std=_DEVIATION)
        nn.init.zeros_(self.E)
        nn.init.normal_(self.B, std=_DEVIATION)

    def adapt(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.B @ (self.E * self.A))

    def low_rank(self) -> LowRankUpdate:
        down = (self.E * self.A).unflatten(-1, self.down_shape)
        up = self.B.reshape(*self.B.shape, *self.up_shape)
        return LowRankUpdate(down, up, self.scale, self.method.dropout if self.training else 0.0)
