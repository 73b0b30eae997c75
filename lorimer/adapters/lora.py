"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685).

    W' = W + (alpha / rank) · B · A        A: (rank, in), B: (out, rank)

A starts Kaiming-uniform and B at zero (section 4.1), so that training starts from the base model;
other starts are in `_starts.py`. A start that gives B·A a value keeps it in A0 and B0, which stay
fixed, and the update is what was learned since:

    W' = W + (alpha / rank) · (B · A - B0 · A0)

For a convolution the weight is the matrix (out, in / groups · prod(kernel)); A is kept in the shape
of `rank` filters and B in that of a 1 x 1 convolution, which are the shapes other programs read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorimer.adapters._base import Adapter, LowRankUpdate, Method, WeightSpec, derived, training_only
from lorimer.adapters._starts import DATA_STARTS, STARTS, fill
from lorimer.errors import UsageError, suggest
from lorimer.kernels.low_rank import low_rank_product

if TYPE_CHECKING:
    from lorimer.adapters._state import LayerState
    from lorimer.layers.geometry import Geometry


@dataclass(frozen=True)
class LoRA(Method):
    """Plain LoRA.

    Attributes:
        rank: the rank of the update, at least 1.
        alpha: the update is scaled by alpha / rank; None means alpha = rank.
        bias: also train an update of the layer's bias, scaled alike.
        dropout: in training, the share of the input that the update does not see (section 5).
        rslora: scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732).
        start: how A and B begin: kaiming, gaussian, orthogonal, pissa, pissa-fast or olora; in recipes also
            eva, corda or lora-ga, which look at data.
        shifted: the update counts from a start other than zero; follows from `start`.
    """

    name: ClassVar[str] = "lora"
    additive: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "A": {"peft": "lora_A.weight", "peft-embedding": "lora_embedding_A", "kohya": "lora_down.weight"},
        "B": {"peft": "lora_B.weight", "peft-embedding": "lora_embedding_B", "kohya": "lora_up.weight"},
        "bias": {"peft": "lora_B.bias"},
        "A0": {},
        "B0": {},
    }
    optional: ClassVar[frozenset[str]] = frozenset({"bias", "A0", "B0"})
    fast_tensors: ClassVar[frozenset[str]] = frozenset({"B"})
    rank_axes: ClassVar[Mapping[str, int]] = {"A": 0, "B": 1, "A0": 0, "B0": 1}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "LORA"}

    peft_told_by_tensors: ClassVar[frozenset[str]] = frozenset({"lora_bias"})

    bias: bool = False
    dropout: float = training_only(0.0)
    rslora: bool = training_only(False)
    start: str = training_only("kaiming")
    shifted: bool = derived(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")
        if self.start in DATA_STARTS:
            raise UsageError(
                f"start {self.start!r} looks at data: attach with another start, then call "
                f"lorimer.initialise(adapter, {self.start!r}, batches)"
            )
        if self.start not in STARTS:
            known = ", ".join(STARTS)
            raise UsageError(
                f"no start is called {self.start!r}.{suggest(self.start, STARTS)} Known: {known}"
            )
        if STARTS[self.start].shifts:
            object.__setattr__(self, "shifted", True)

    @property
    def scaled_alpha(self) -> float:
        return super().scaled_alpha * (math.sqrt(self.rank) if self.rslora else 1.0)

    def build(self, spec: WeightSpec) -> LoRAAdapter:
        return LoRAAdapter(self, spec)

    @classmethod
    def config_of(cls, layers: Mapping[str, LayerState]) -> dict[str, Any]:
        every = {name for layer in layers.values() for name in layer.tensors}
        return {name: True for name, tensor in (("bias", "bias"), ("shifted", "A0")) if tensor in every}

    @classmethod
    def peft_options(cls, config: Mapping[str, Any], targets: Sequence[str] | str) -> dict[str, Any]:
        return {"lora_bias": True} if config.get("bias") else {}

    @classmethod
    def to_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        """Other programs know no start to count from; the same update is plain LoRA of rank 2r, exactly."""
        tensors = dict(layer.tensors)
        if "A0" not in tensors:
            return layer
        tensors["A"] = torch.cat([tensors["A"], tensors.pop("A0")], layer.stacked)
        tensors["B"] = torch.cat([tensors["B"], -tensors.pop("B0")], 1 + layer.stacked)
        return replace(layer, tensors=tensors, rank=2 * layer.rank, alpha=2 * layer.alpha)

    @classmethod
    def factors(cls, layer: LayerState, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        plain = cls.to_dialect(layer, "")
        up, down = (plain.tensors[name].flatten(1 + layer.stacked) for name in ("B", "A"))
        return layer.scale * up, down

    @classmethod
    def bias_change(cls, layer: LayerState, config: Mapping[str, Any]) -> Tensor | None:
        return layer.scale * layer.tensors["bias"] if "bias" in layer.tensors else None

    @classmethod
    def layer_config(cls, layer: LayerState, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "bias": "bias" in layer.tensors, "shifted": "A0" in layer.tensors}


class LoRAAdapter(Adapter):
    """A and B for one weight."""

    method: LoRA
    bias: nn.Parameter | None
    A0: Tensor | None
    B0: Tensor | None

    def __init__(self, method: LoRA, spec: WeightSpec) -> None:
        super().__init__()
        if method.bias and not spec.has_bias:
            raise UsageError("bias=True, but the layer has no bias to train; leave it out or set bias=False")
        self.method = method
        self.scale = method.scale
        self.stacked = len(spec.stack)
        self.A = spec.empty(method.rank, *spec.down_shape)
        self.B = spec.empty(spec.matrix_shape[0], method.rank, *spec.up_shape)
        self.register_parameter("bias", spec.empty(spec.matrix_shape[0]) if method.bias else None)
        self.register_buffer("A0", self.A.detach().clone() if method.shifted else None)
        self.register_buffer("B0", self.B.detach().clone() if method.shifted else None)

    def start(self, weight: Callable[[], Tensor]) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        A, B = self.A.detach().flatten(1 + self.stacked), self.B.detach().flatten(1 + self.stacked)
        fill(self.method.start, A, B, weight, self.scale)
        self.hold_start()

    @torch.no_grad()
    def hold_start(self) -> None:
        """Count the update from where A and B are now."""
        if self.A0 is not None and self.B0 is not None:
            self.A0.copy_(self.A)
            self.B0.copy_(self.B)

    @torch.no_grad()
    def begin(self, A: Tensor, B: Tensor, *, shifted: bool) -> None:
        """Begin anew at A (rank, in) and B (out, rank), or stacks of them, perhaps of another rank, at the
        scale that there was; `shifted`: the update counts from there. The parameters stay the same objects,
        so an optimiser that was made before trains them all the same."""
        rank = A.shape[self.stacked]
        alpha = self.method.scaled_alpha * (rank / self.method.rank)
        self.method = replace(
            self.method, rank=rank, alpha=alpha, rslora=False, start="kaiming", shifted=shifted
        )
        self.scale = self.method.scale
        stack = self.A.shape[: self.stacked]
        self.A.data = A.to(self.A).reshape(*stack, rank, *self.A.shape[1 + self.stacked :]).clone()
        self.B.data = B.to(self.B).reshape(*stack, -1, rank, *self.B.shape[2 + self.stacked :]).clone()
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.A0, self.B0 = (self.A.detach().clone(), self.B.detach().clone()) if shifted else (None, None)

    def adapt(self, weight: Tensor) -> Tensor:
        change = self._product(self.A, self.B)
        if self.A0 is not None and self.B0 is not None:
            change = change - self._product(self.A0, self.B0)
        return change.add_(weight) if change.dtype == weight.dtype else weight + change

    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        return bias if bias is None or self.bias is None else bias + self.scale * self.bias

    def low_rank(self) -> LowRankUpdate:
        dropout = self.method.dropout if self.training else 0.0
        if self.A0 is None or self.B0 is None:
            return LowRankUpdate(self.A, self.B, self.scale, dropout)
        A = torch.cat([self.A, self.A0], self.stacked)
        B = torch.cat([self.B, -self.B0], 1 + self.stacked)
        return LowRankUpdate(A, B, self.scale, dropout)

    def forward(self, x: Tensor, base: Geometry, strength: float) -> Tensor | None:
        return self._with_bias(super().forward(x, base, strength), base, strength)

    def add(self, x: Tensor, output: Tensor, base: Geometry, strength: float) -> Tensor | None:
        return self._with_bias(super().add(x, output, base, strength), base, strength)

    def _product(self, A: Tensor, B: Tensor) -> Tensor:
        return low_rank_product(A.flatten(1 + self.stacked), B.flatten(1 + self.stacked), self.scale)

    def _with_bias(self, output: Tensor | None, base: Geometry, strength: float) -> Tensor | None:
        if output is None or self.bias is None:
            return output
        return output + base.along_channels(self.scale * strength * self.bias, output)
