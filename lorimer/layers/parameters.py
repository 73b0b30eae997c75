"""Parameters that no supported layer owns: biases, norms, raw tensors, packed projections.

Whoever owns such a parameter reads it in a forward of its own, so adapted values are given to whoever
reads (see `host.py`).
"""

from __future__ import annotations

from torch import Tensor

from lorimer.layers.geometry import Geometry


class ReadGeometry(Geometry):
    """A parameter that is read. No bias belongs to it: who reads it decides what is added to what."""

    called = False

    @property
    def bias(self) -> Tensor | None:
        return None


class VectorGeometry(ReadGeometry):
    """A parameter (n,), as a matrix of one column."""

    kind = "vector"

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (1,), ()

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(1)


class MatrixGeometry(ReadGeometry):
    """A parameter (out, in) such as a packed projection's."""

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.weight.shape[1],), ()


class StackGeometry(ReadGeometry):
    """A parameter (stack, out, in), e.g. the weights of a layer's experts."""

    kind = "stack"

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.to_matrix(self.weight).shape[2],), ()

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight


class TransposedStackGeometry(StackGeometry):
    """A parameter (stack, in, out), as GPT-OSS keeps its experts."""

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.transpose(1, 2)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.transpose(1, 2)


class OtherGeometry(ReadGeometry):
    """A parameter of any other shape, which can only be trained in full."""

    kind = "other"

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (), ()

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(1, -1)
