"""VeRA: two vectors around random matrices that are never trained (Kopiczko et al. 2023, arXiv 2310.11454,
equation 2).

    W' = W + (alpha / rank) · diag(b) · B · diag(d) · A        A: (rank, in), B: (out, rank), random
                                                               d: (rank,), b: (out,), trained

A and B follow from the seed and their shapes alone and are drawn on the CPU, so that they are the same on
every machine and no file carries them. Layers of equal shape share theirs in memory. b starts at zero, so
that training starts from the base model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from lorimer.adapters._base import Adapter, LowRankUpdate, Method, WeightSpec, training_only
from lorimer.errors import FileFormatError, UsageError

if TYPE_CHECKING:
    from lorimer.adapters._state import LayerState


@dataclass(frozen=True)
class VeRA(Method):
    """Two trained vectors around shared random matrices.

    Attributes:
        rank: inner size of the random matrices; the paper uses 256 and more, as each costs one number.
        alpha: the update is scaled by alpha / rank; None means alpha = rank, which is the paper's.
        seed: what the random matrices are drawn from.
        d_start: the value that d starts at.
        dropout: in training, the share of the input that the update does not see.
    """

    name: ClassVar[str] = "vera"
    additive: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {"d": {}, "b": {}}
    fast_tensors: ClassVar[frozenset[str]] = frozenset({"b"})

    rank: int = 256
    seed: int = 0
    d_start: float = training_only(0.1)
    dropout: float = training_only(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be a whole number of at least 0 and below 2**63, not {self.seed!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")

    def build(self, spec: WeightSpec) -> VeRAAdapter:
        return VeRAAdapter(self, spec)

    @classmethod
    def factors(cls, layer: LayerState, config: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        if layer.tensors["d"].shape[-1:] != (layer.rank,):  # before A and B of a claimed rank take memory
            raise FileFormatError(f"d of shape {tuple(layer.tensors['d'].shape)} is not of rank {layer.rank}")
        return None  # their shape needs the layer's width, which d and b do not tell


class VeRAAdapter(Adapter):
    """d and b for one weight, and the random matrices that they scale."""

    method: VeRA
    A: Tensor
    B: Tensor

    def __init__(self, method: VeRA, spec: WeightSpec) -> None:
        super().__init__()
        self.method, self.spec, self.scale = method, spec, method.scale
        A, B = shared_projections(method.seed, method.rank, spec)
        self.register_buffer("A", A, persistent=False)
        self.register_buffer("B", B, persistent=False)
        self.d = spec.empty(method.rank)
        self.b = spec.empty(spec.matrix_shape[0])

    def start(self, weight: Callable[[], Tensor]) -> None:
        nn.init.constant_(self.d, self.method.d_start)
        nn.init.zeros_(self.b)

    def adapt(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self._up() @ self.A

    def low_rank(self) -> LowRankUpdate:
        A, up = self.A.unflatten(-1, self.spec.down_shape), self._up()
        dropout = self.method.dropout if self.training else 0.0
        return LowRankUpdate(A, up.reshape(*up.shape, *self.spec.up_shape), self.scale, dropout)

    def _up(self) -> Tensor:
        """diag(b) · B · diag(d). With d on this side A is constant: the backward pass needs A·x alone."""
        return self.b.unsqueeze(-1) * self.B * self.d.unsqueeze(-2)


def random_projections(seed: int, rank: int, out: int, into: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank), Kaiming-uniform for a ReLU, drawn one after the other on the CPU: the
    numbers that PEFT draws for a model whose adapted layers all have this shape."""
    generator = torch.Generator("cpu").manual_seed(seed)
    down, up = torch.empty(rank, into), torch.empty(out, rank)
    for matrix in (down, up):
        bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(matrix.shape[1]))
        matrix.uniform_(-bound, bound, generator=generator)
    return down, up


# Those in use, so that layers of equal shape share them.
_in_use: WeakValueDictionary[tuple[object, ...], Tensor] = WeakValueDictionary()


def shared_projections(seed: int, rank: int, spec: WeightSpec) -> tuple[Tensor, Tensor]:
    """`random_projections` for a weight, the same tensors for equal weights."""
    key = (seed, rank, *spec.matrix_shape, spec.dtype, spec.device)
    A, B = _in_use.get((*key, "A")), _in_use.get((*key, "B"))
    if A is None or B is None:
        A, B = (
            matrix.to(spec.device, spec.dtype)
            for matrix in random_projections(seed, rank, *spec.matrix_shape)
        )
        _in_use[(*key, "A")], _in_use[(*key, "B")] = A, B
    return A, B
