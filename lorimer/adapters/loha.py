"""LoHa: the Hadamard product of two low-rank matrices (FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098,
proposition 1; LyCORIS, arXiv 2309.14859).

    W' = W + (alpha / rank) · (w1_a · w1_b) * (w2_a · w2_b)

    w1_a, w2_a: (out, rank)        w1_b, w2_b: (rank, in)

The update is of rank up to rank² with the parameters of a LoRA of rank 2 · rank. It is a product of two
factors too: entry (i, j) of the inner axis pairs column i of the first matrix with column j of the second,

    up[p, ij] = w1_a[p, i] w2_a[p, j]        down[ij, q] = w1_b[i, q] w2_b[j, q]

For a convolution each of the two may be in Tucker form, with cores t1 and t2 (see `_tucker.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorimer.adapters._base import Adapter, LowRankUpdate, Method, WeightSpec
from lorimer.adapters._tucker import empty_factors, two_factors

if TYPE_CHECKING:
    from lorimer.adapters._state import LayerState
    from lorimer.layers.geometry import Geometry


@dataclass(frozen=True)
class LoHa(Method):
    """The Hadamard product of two low-rank matrices.

    Attributes:
        rank: of each of the two, at least 1.
        alpha: the update is scaled by alpha / rank; None means alpha = rank.
        tucker: keep the two in Tucker form where a convolution's kernel is larger than 1.
    """

    name: ClassVar[str] = "loha"
    additive: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {
        name: {"peft": f"hada_{name}", "kohya": f"hada_{name}"}
        for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    }
    optional: ClassVar[frozenset[str]] = frozenset({"t1", "t2"})
    rank_axes: ClassVar[Mapping[str, int]] = {"w1_b": 0, "w2_b": 0, "t1": 0, "t2": 0}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "LOHA"}
    peft_alpha: ClassVar[str] = "alpha"
    peft_told_by_tensors: ClassVar[frozenset[str]] = frozenset(
        {"use_effective_conv2d", "init_weights", "rank_dropout", "module_dropout"}
    )

    tucker: bool = False

    def build(self, spec: WeightSpec) -> LoHaAdapter:
        return LoHaAdapter(self, spec)

    @classmethod
    def config_of(cls, layers: Mapping[str, LayerState]) -> dict[str, Any]:
        return {"tucker": True} if any("t1" in layer.tensors for layer in layers.values()) else {}

    @classmethod
    def peft_options(cls, config: Mapping[str, Any], targets: Sequence[str] | str) -> dict[str, Any]:
        return {"use_effective_conv2d": bool(config.get("tucker"))}

    @classmethod
    def factors(cls, layer: LayerState, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        t = layer.tensors
        first = two_factors(t["w1_a"], t["w1_b"], t.get("t1"), layer.stacked)
        second = two_factors(t["w2_a"], t["w2_b"], t.get("t2"), layer.stacked)
        up, down = hadamard_factors(first, second)
        return layer.scale * up, down


class LoHaAdapter(Adapter):
    """The factors of the two matrices for one weight."""

    method: LoHa
    t1: nn.Parameter | None
    t2: nn.Parameter | None

    def __init__(self, method: LoHa, spec: WeightSpec) -> None:
        super().__init__()
        self.method, self.spec, self.scale = method, spec, method.scale
        out, into = spec.matrix_shape[0], spec.down_shape[0]
        self.w1_a, self.w1_b, self.t1 = empty_factors(spec, method.rank, out, into, method.tucker)
        self.w2_a, self.w2_b, self.t2 = empty_factors(spec, method.rank, out, into, method.tucker)
        self.factored = factors_are_cheaper(method.rank, *spec.matrix_shape)

    def start(self, weight: Callable[[], Tensor]) -> None:
        """As LyCORIS: everything normal but w2_a, which is zero."""
        for factor, deviation in ((self.w1_a, 0.1), (self.w1_b, 1.0), (self.w2_b, 1.0)):
            nn.init.normal_(factor, std=deviation)
        for core in (self.t1, self.t2):
            if core is not None:
                nn.init.normal_(core, std=0.1)
        nn.init.zeros_(self.w2_a)

    def adapt(self, weight: Tensor) -> Tensor:
        (up1, down1), (up2, down2) = self._pairs()
        return weight + self.scale * (up1 @ down1) * (up2 @ down2)

    def low_rank(self) -> LowRankUpdate | None:
        if not self.factored:
            return None
        up, down = hadamard_factors(*self._pairs())
        A = down.unflatten(-1, self.spec.down_shape)
        return LowRankUpdate(A, up.reshape(*up.shape, *self.spec.up_shape), self.scale)

    def forward(self, x: Tensor, base: Geometry, strength: float) -> Tensor | None:
        return super().forward(x, base, strength) if self.factored else None

    def _pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(up, down) of each of the two matrices."""
        stacked = len(self.spec.stack)
        first = two_factors(self.w1_a, self.w1_b, self.t1, stacked)
        return first, two_factors(self.w2_a, self.w2_b, self.t2, stacked)


def hadamard_factors(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(up, down) of shapes (out, r s) and (r s, in), whose product is that of two matrices entry by entry,
    each given as (up, down) of shapes (out, r), (r, in) and (out, s), (s, in)."""
    (up1, down1), (up2, down2) = first, second
    up = torch.einsum("...pi,...pj->...pij", up1, up2).flatten(-2)
    down = torch.einsum("...iq,...jq->...ijq", down1, down2).flatten(-3, -2)
    return up, down


def factors_are_cheaper(rank: int, out: int, into: int) -> bool:
    """Whether running the input through the rank² factors takes less work than adapting the weight: three
    products with both factors, forward and backward, against the weight's whole gradient."""
    return 3 * rank**2 * (out + into) < out * into
