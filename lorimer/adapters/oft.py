"""OFT: the inputs of a layer rotated in blocks (Qiu et al. 2023, arXiv 2306.07280; input side as in OFTv2,
Qiu et al. 2025, arXiv 2506.19847).

    W' = W · Rᵀ        R = diag(R_1, ..., R_n), each (block_size, block_size) and orthogonal
    R_i = (I - Q_i) · (I + Q_i)⁻¹,  Q_i = -Q_iᵀ        Cayley's transform: orthogonal whatever Q_i is

Only the entries of Q_i above the diagonal are kept, row by row, and start at zero, where R is the identity.
Angles between the weight's rows, and their norms, stay as they were. A Linear rotates its input instead of
its weight. The series that PEFT uses by default is there for its files (`neumann_terms`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorimer.adapters._base import Adapter, Method, WeightSpec
from lorimer.errors import FileFormatError, UsageError

if TYPE_CHECKING:
    from lorimer.adapters._state import LayerState
    from lorimer.layers.geometry import Geometry

_MAX_TERMS = 100  # far beyond any use; a file that claims more would keep every step busy


@dataclass(frozen=True)
class OFT(Method):
    """A block-diagonal rotation of the inputs.

    Attributes:
        block_size: inputs (columns of the weight's matrix) that are rotated together; it must divide them.
        neumann_terms: 0 for the exact transform; else that many terms of PEFT's series for
            (I + Q) · (I - Q)⁻¹, which is a rotation only as long as Q is small.
    """

    name: ClassVar[str] = "oft"
    ranked: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {"Q": {"peft": "oft_R.weight"}}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "OFT"}
    peft_alpha: ClassVar[str] = ""
    peft_told_by_tensors: ClassVar[frozenset[str]] = frozenset(
        {"oft_block_size", "use_cayley_neumann", "num_cayley_neumann_terms"}
        | {"eps", "init_weights", "module_dropout"}
    )

    rank: int = 1
    block_size: int = 32
    neumann_terms: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank != 1 or self.alpha not in (None, 1):
            raise UsageError("oft has no rank and no alpha; set block_size, and leave them out")
        if self.block_size < 2:
            raise UsageError(f"block_size must be a whole number of at least 2, not {self.block_size!r}")
        if self.neumann_terms != 0 and not 4 <= self.neumann_terms <= _MAX_TERMS:
            raise UsageError(f"neumann_terms must be 0 or 4 to {_MAX_TERMS}, not {self.neumann_terms!r}")

    @classmethod
    def config_of(cls, layers: Mapping[str, LayerState]) -> dict[str, Any]:
        """n = size (size - 1) / 2 entries of each block."""
        entries = {layer.tensors["Q"].shape[-1] for layer in layers.values() if layer.tensors["Q"].ndim}
        sizes = {(1 + math.isqrt(1 + 8 * n)) // 2 for n in entries}
        return {"block_size": sizes.pop()} if len(sizes) == 1 else {}

    @classmethod
    def layer_config(cls, layer: LayerState, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, **cls.config_of({"": layer})}

    @classmethod
    def peft_options(cls, config: Mapping[str, Any], targets: Sequence[str] | str) -> dict[str, Any]:
        terms = config.get("neumann_terms", 0)
        return {
            "peft_version": "0.18.0",  # whose series it is
            "r": 0,
            "oft_block_size": config.get("block_size", cls.block_size),
            "use_cayley_neumann": terms > 0,
            "num_cayley_neumann_terms": terms or 5,
        }

    @classmethod
    def from_peft_options(
        cls, options: Mapping[str, Any], layers: Mapping[str, LayerState]
    ) -> dict[str, Any]:
        if not options.get("use_cayley_neumann", True):
            return {}
        terms = options.get("num_cayley_neumann_terms", 5)
        if type(terms) is not int or not 3 <= terms <= _MAX_TERMS:
            raise FileFormatError(f"num_cayley_neumann_terms must be 3 to {_MAX_TERMS}, not {terms!r:.40}")
        return {"neumann_terms": max(terms, 4)}  # PEFT adds up the same terms for 3 as for 4

    def build(self, spec: WeightSpec) -> OFTAdapter:
        return OFTAdapter(self, spec)


class OFTAdapter(Adapter):
    """The entries of Q above the diagonals for one weight, (blocks, block_size (block_size - 1) / 2)."""

    method: OFT

    def __init__(self, method: OFT, spec: WeightSpec) -> None:
        super().__init__()
        size, columns = method.block_size, spec.matrix_shape[1]
        if columns % size:
            raise UsageError(
                f"block_size {size} does not divide the weight's {columns} columns; "
                + _that_divide(columns, size)
            )
        self.method, self.size, self.linear = method, size, not spec.up_shape
        self.Q = spec.empty(columns // size, size * (size - 1) // 2)

    def start(self, weight: Callable[[], Tensor]) -> None:
        nn.init.zeros_(self.Q)

    def adapt(self, weight: Tensor) -> Tensor:
        rows = weight.unflatten(-1, (-1, self.size))  # (..., out, blocks, block_size)
        return torch.einsum("...onk,...nck->...onc", rows, self._rotation()).flatten(-2)

    def forward(self, x: Tensor, base: Geometry, strength: float) -> Tensor | None:
        if not self.linear or not x.is_floating_point():
            return None
        # The part beyond the identity is what may be small, so it is what is rounded to the type of x.
        change = self._rotation() - torch.eye(self.size, dtype=self.Q.dtype, device=self.Q.device)
        blocks = x.unflatten(-1, (-1, self.size))
        turned = torch.einsum("...nk,nkc->...nc", blocks, change.to(x.dtype) * strength).flatten(-2)
        return base.output(x + turned.to(x.dtype))

    def _rotation(self) -> Tensor:
        """R's blocks, (..., blocks, block_size, block_size)."""
        Q = skew_symmetric(self.Q, self.size)
        return neumann(Q, self.method.neumann_terms) if self.method.neumann_terms else cayley(Q)


def skew_symmetric(entries: Tensor, size: int) -> Tensor:
    """Q = -Qᵀ (..., size, size) from its entries above the diagonal (..., size (size - 1) / 2)."""
    row, column = torch.triu_indices(size, size, 1, device=entries.device)
    above = entries.new_zeros(*entries.shape[:-1], size, size)
    above[..., row, column] = entries
    return above - above.mT


def cayley(Q: Tensor) -> Tensor:
    """(I - Q) · (I + Q)⁻¹, orthogonal for Q = -Qᵀ: (..., size, size) -> the same. The inverse exists, since
    the eigenvalues of Q are imaginary."""
    precise = Q.float() if Q.dtype in (torch.float16, torch.bfloat16) else Q  # torch solves in no others
    identity = torch.eye(Q.shape[-1], dtype=precise.dtype, device=Q.device).expand_as(precise)
    return torch.linalg.solve(identity + precise, identity - precise, left=False).to(Q.dtype)


def neumann(Q: Tensor, terms: int) -> Tensor:
    """I + 2 Q + 2 Q² + ... + Q^(terms - 1), the last one once: PEFT's series for (I + Q) · (I - Q)⁻¹."""
    power, series = Q, torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device) + 2 * Q
    for _ in range(terms - 3):
        power = power @ Q
        series = series + 2 * power
    return series + power @ Q


def _that_divide(columns: int, near: int) -> str:
    """What to set instead."""
    sizes = sorted(
        (size for size in range(2, columns + 1) if columns % size == 0), key=lambda n: abs(n - near)
    )
    return (
        f"set one that does, such as {', '.join(map(str, sorted(sizes[:3])))}"
        if sizes
        else "exclude the layer"
    )
