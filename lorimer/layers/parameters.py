"""Parameters that no supported layer owns: biases, norms, raw tensors, packed projections.

Whoever owns such a parameter reads it in a forward of its own, so adapted values are given to whoever
reads (see `host.py`).
"""

from __future__ import annotations

from torch import Tensor

from lorimer.layers.geometry import Geometry


class VectorGeometry(Geometry):
    """A parameter (n,), as a matrix of one column."""

    kind = "vector"
    called = False

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (1,), ()

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(1)


class MatrixGeometry(Geometry):
    """A parameter (out, in) such as a packed projection's."""

    called = False

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.weight.shape[1],), ()


class OtherGeometry(Geometry):
    """A parameter of any other shape, which can only be trained in full."""

    kind = "other"
    called = False

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (), ()

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(1, -1)


class StackGeometry(Geometry):
    """A parameter (stack, out, in), e.g. the weights of a layer's experts."""

    kind = "stack"
    called = False

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.weight.shape[2],), ()

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight
