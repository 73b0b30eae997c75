"""LoKr: the Kronecker product of two small matrices (LyCORIS, Yeh et al. 2023, arXiv 2309.14859, equation 6).

    W' = W + (alpha / rank) · w1 ⊗ w2        w1: (a, c), w2: (b, d), with out = a b and in = c d

`factor` tells how out and in are split. Either matrix may be a product of two factors of the rank,
w1 = w1_a · w1_b and w2 = w2_a · w2_b, where that is smaller. For a convolution in = c d counts channels, w2
is (b, d, *kernel), and its factors may be in Tucker form with a core t2 (see `_tucker.py`).

A Linear never forms the product: with the input x as a matrix X (c, d), (w1 ⊗ w2) x = w1 · X · w2ᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorimer.adapters._base import Adapter, Method, WeightSpec
from lorimer.adapters._tucker import empty_factors, two_factors
from lorimer.errors import FileFormatError, UsageError

if TYPE_CHECKING:
    from lorimer.adapters._state import LayerState
    from lorimer.layers.geometry import Geometry

# Numbers in exact factors, at most: small tensors of a file may stand for a product that fits into no memory.
_MAX_FACTORS = 2**28
_NAMES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")


@dataclass(frozen=True)
class LoKr(Method):
    """The Kronecker product of two small matrices.

    Attributes:
        rank: of the factors of w2 (and of w1, see `decompose_both`). A matrix whose larger side is at most
            twice the rank is kept whole.
        alpha: the update is scaled by alpha / rank; None means alpha = rank.
        factor: sides of w1; the largest divisor of the layer's side up to it is taken. -1 splits as
            evenly as possible, which gives the smallest adapter.
        decompose_both: keep w1 as factors too where that is smaller.
        full_matrix: keep both whole.
        tucker: keep w2's factors in Tucker form where a convolution's kernel is larger than 1.
    """

    name: ClassVar[str] = "lokr"
    additive: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {
        name: {"peft": f"lokr_{name}", "kohya": f"lokr_{name}"} for name in _NAMES
    }
    optional: ClassVar[frozenset[str]] = frozenset(_NAMES)
    rank_axes: ClassVar[Mapping[str, int]] = {"w1_b": 0, "w2_b": 0, "t2": 0}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "LOKR"}
    peft_alpha: ClassVar[str] = "alpha"
    peft_told_by_tensors: ClassVar[frozenset[str]] = frozenset(
        {"decompose_factor", "decompose_both", "use_effective_conv2d", "init_weights", "rank_dropout"}
        | {"module_dropout", "rank_dropout_scale"}
    )

    factor: int = -1
    decompose_both: bool = False
    full_matrix: bool = False
    tucker: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.factor, int) or (self.factor < 1 and self.factor != -1):
            raise UsageError(f"factor must be a whole number of at least 1, or -1, not {self.factor!r}")

    def build(self, spec: WeightSpec) -> LoKrAdapter:
        return LoKrAdapter(self, spec)

    @classmethod
    def config_of(cls, layers: Mapping[str, LayerState]) -> dict[str, Any]:
        every = list(layers.values())
        names = {name for layer in every for name in layer.tensors}
        found = {
            "factor": _factor_of(every),
            "decompose_both": "w1_a" in names,
            "tucker": "t2" in names,
        }
        return {name: value for name, value in found.items() if value != getattr(cls, name)}

    @classmethod
    def layer_config(cls, layer: LayerState, config: Mapping[str, Any]) -> dict[str, Any]:
        """Other programs keep single layers whole, and do not say so."""
        if "w2" not in layer.tensors or _keeps_whole(layer.rank, *_sides_of_w2(layer)):
            return dict(config)
        return {**config, "full_matrix": True}

    @classmethod
    def peft_options(cls, config: Mapping[str, Any], targets: Sequence[str] | str) -> dict[str, Any]:
        return {
            "decompose_factor": config.get("factor", -1),
            "decompose_both": bool(config.get("decompose_both")),
            "use_effective_conv2d": bool(config.get("tucker")),
        }

    @classmethod
    def to_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        """PEFT keeps w2 whole where the rank is large, so it is told one; programs that read LyCORIS's files
        scale no update without factors."""
        tensors, rank, alpha = dict(layer.tensors), layer.rank, layer.alpha
        if dialect == "peft" and "w1" in tensors and "w2" in tensors:
            rank = max(rank, -(-max(_sides_of_w2(layer)) // 2))
            alpha = layer.scale * rank
        if dialect == "kohya" and "w1" in tensors and "w2" in tensors:
            tensors["w1"] = tensors["w1"] * layer.scale
            alpha = float(rank)
        return replace(layer, tensors=tensors, rank=rank, alpha=alpha)

    @classmethod
    def from_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        whole = dialect == "kohya" and "w1" in layer.tensors and "w2" in layer.tensors
        return replace(layer, alpha=float(layer.rank)) if whole else layer

    @classmethod
    def factors(cls, layer: LayerState, config: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        pairs = _pairs(layer.tensors, layer.stacked)
        if math.prod(_rank(pair) * sum(_shape(pair)) for pair in pairs) > _MAX_FACTORS:
            return None
        (up1, down1), (up2, down2) = (_factored(pair) for pair in pairs)
        return layer.scale * kronecker(up1, up2), kronecker(down1, down2)


class LoKrAdapter(Adapter):
    """w1 and w2 for one weight, each whole or as factors."""

    method: LoKr

    def __init__(self, method: LoKr, spec: WeightSpec) -> None:
        super().__init__()
        self.method, self.scale, self.stacked = method, method.scale, len(spec.stack)
        self.linear = not spec.up_shape
        (a, b), (c, d) = split(spec.matrix_shape[0], method.factor), split(spec.down_shape[0], method.factor)
        for name in _NAMES:
            self.register_parameter(name, None)
        if method.decompose_both and not (method.full_matrix or _keeps_whole(method.rank, a, c)):
            self.w1_a, self.w1_b = spec.empty(a, method.rank), spec.empty(method.rank, c)
        else:
            self.w1 = spec.empty(a, c)
        if not (method.full_matrix or _keeps_whole(method.rank, b, d)):
            self.w2_a, self.w2_b, self.t2 = empty_factors(spec, method.rank, b, d, method.tucker)
        else:
            self.w2 = spec.empty(b, d, *spec.down_shape[1:])

    def start(self, weight: Callable[[], Tensor]) -> None:
        """As LyCORIS: everything Kaiming-uniform but w2, or its second factor, which is zero."""
        for name, parameter in self.named_parameters():
            if name in ("w2", "w2_b"):
                nn.init.zeros_(parameter)
            else:
                for each in parameter if self.stacked else [parameter]:
                    nn.init.kaiming_uniform_(each, a=math.sqrt(5))

    def adapt(self, weight: Tensor) -> Tensor:
        w1, w2 = (_whole(pair) for pair in self._pairs())
        return weight + self.scale * kronecker(w1, w2)

    def forward(self, x: Tensor, base: Geometry, strength: float) -> Tensor | None:
        return super().forward(x, base, strength) if self._takes(x) else None

    def add(self, x: Tensor, output: Tensor, base: Geometry, strength: float) -> Tensor | None:
        if not self._takes(x):
            return None
        first, second = self._pairs()
        return output + kronecker_linear(x, first, second, self.scale * strength).to(output.dtype)

    def _takes(self, x: Tensor) -> bool:
        """Whether `x` is the input of a Linear: no convolution's, and no token numbers."""
        return self.linear and x.is_floating_point()

    def _pairs(self) -> tuple[Pair, Pair]:
        present = {name: tensor for name in _NAMES if (tensor := getattr(self, name)) is not None}
        return _pairs(present, self.stacked)


Pair = tuple[Tensor | None, Tensor]  # (up, down), or (None, the whole matrix)


def kronecker(left: Tensor, right: Tensor) -> Tensor:
    """left ⊗ right: (..., a, c) and (..., b, d) -> (..., a b, c d)."""
    return torch.einsum("...ac,...bd->...abcd", left, right).flatten(-4, -3).flatten(-2)


def kronecker_linear(x: Tensor, first: Pair, second: Pair, scale: float) -> Tensor:
    """scale · (w1 ⊗ w2) x: (..., c d) -> (..., a b), for w1 (a, c) and w2 (b, d)."""
    (up1, down1), (up2, down2) = first, second
    hidden = (
        x.unflatten(-1, (down1.shape[-1], -1)) @ down2.to(x.dtype).mT * scale
    )  # (..., c, rank of w2 or b)
    hidden = down1.to(hidden.dtype) @ hidden
    if up1 is not None:
        hidden = up1.to(hidden.dtype) @ hidden
    if up2 is not None:
        hidden = hidden @ up2.to(hidden.dtype).mT
    return hidden.flatten(-2)


def split(side: int, factor: int) -> tuple[int, int]:
    """(m, n) with m · n = side: m is `factor` where that divides; else the largest divisor up to `factor`
    (or any, for -1) that is not above the root of `side`."""
    if factor > 0 and side % factor == 0:
        return factor, side // factor
    limit = math.isqrt(side) if factor == -1 else min(factor, math.isqrt(side))
    m = next(divisor for divisor in range(limit, 0, -1) if side % divisor == 0)
    return m, side // m


def _keeps_whole(rank: int, rows: int, columns: int) -> bool:
    """Whether factors of the rank would save too little."""
    return 2 * rank >= max(rows, columns)


def _sides_of_w2(layer: LayerState) -> tuple[int, int]:
    """(b, d) of a layer whose w2 is whole."""
    b, d = layer.tensors["w2"].shape[layer.stacked : layer.stacked + 2]
    return b, d


def _pairs(tensors: Mapping[str, Tensor], stacked: int) -> tuple[Pair, Pair]:
    """w1 and w2 as matrices, in the form that the tensors have them."""
    if not all(whole in tensors or {f"{whole}_a", f"{whole}_b"} <= tensors.keys() for whole in ("w1", "w2")):
        raise FileFormatError(
            f"{', '.join(tensors)} are no Kronecker product: w1 or w2, or factors of it, lack"
        )
    first = (None, tensors["w1"]) if "w1" in tensors else (tensors["w1_a"], tensors["w1_b"])
    if "w2" in tensors:
        return first, (None, tensors["w2"].flatten(1 + stacked))
    return first, two_factors(tensors["w2_a"], tensors["w2_b"], tensors.get("t2"), stacked)


def _shape(pair: Pair) -> tuple[int, int]:
    up, down = pair
    return (down if up is None else up).shape[-2], down.shape[-1]


def _rank(pair: Pair) -> int:
    """Of the factors that `_factored` gives."""
    up, down = pair
    return min(down.shape[-2:]) if up is None else up.shape[-1]


def _whole(pair: Pair) -> Tensor:
    up, down = pair
    return down if up is None else up @ down


def _factored(pair: Pair) -> tuple[Tensor, Tensor]:
    """Two factors whose product is the matrix; a whole one gets the identity on its smaller side."""
    up, down = pair
    if up is not None:
        return up, down
    rows, columns = down.shape[-2:]
    identity = torch.eye(min(rows, columns), dtype=down.dtype, device=down.device).expand(
        *down.shape[:-2], -1, -1
    )
    return (identity, down) if rows <= columns else (down, identity)


def _factor_of(layers: Iterable[LayerState]) -> int:
    """The `factor` that splits every layer as its tensors are; -1 where none does."""
    sides = {side for layer in layers for side in _sides(layer)}
    for factor in sorted({m for m, _, _ in sides}, reverse=True):
        if all(_splits(factor, *side) for side in sides):
            return factor
    return -1


def _sides(layer: LayerState) -> list[tuple[int, int, bool]]:
    """(m, n, whether n may count a kernel too) for the layer's out and in."""
    (a, c), (b, d) = (_shape(pair) for pair in _pairs(layer.tensors, layer.stacked))
    return [(a, b, False), (c, d, True)]


_KERNELS = (1, 3, 9, 25, 27, 49)  # sizes of those in use; a file does not say which


def _splits(factor: int, m: int, n: int, with_kernel: bool) -> bool:
    sizes = [size for size in (_KERNELS if with_kernel else (1,)) if n % size == 0]
    return any(split(m * n // size, factor) == (m, n // size) for size in sizes)
