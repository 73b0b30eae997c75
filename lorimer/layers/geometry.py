"""How a layer's parameter is seen as a matrix, and how the layer runs with another one in its place.

A `Geometry` is a view bound to one parameter of one layer; it holds no state. Supporting a new layer
type means writing one class (see `linear.py`, `convolution.py`) and naming it in `kinds.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorimer.adapters._base import WeightSpec

# Precisions too coarse to train small updates in; adapters beside such weights are kept in float32.
_COARSE = (torch.float16, torch.bfloat16)


class Geometry(ABC):
    """The contract between a layer and every adapter.

    Attributes:
        kind: see `WeightSpec`.
        called: the layer's forward is called and may be replaced; otherwise somebody reads the parameter,
            and adapted values are given to whoever reads.
        channel_axis: the axis of the layer's output that counts its rows.
        dense_class: what the layer becomes when a plain weight is put in the place of its own; None where its
            own is plain.
        quantised: the weight is kept packed, and the layer's own forward alone can multiply with it.
        mirrored: the adapter was made for another layer that shares the parameter, and is seen from there.
    """

    kind: ClassVar[str] = "matrix"
    called: ClassVar[bool] = True
    channel_axis: ClassVar[int] = -1
    dense_class: ClassVar[type[nn.Module] | None] = None
    quantised: ClassVar[bool] = False
    mirrored: ClassVar[bool] = False

    def __init__(self, layer: nn.Module, parameter: str = "weight") -> None:
        self.layer: Any = layer
        self.parameter = parameter

    @property
    def weight(self) -> Tensor:
        """The frozen parameter in its own shape; dequantised where it is kept quantised."""
        weight = self.layer._parameters[self.parameter]
        assert isinstance(weight, Tensor)
        return weight

    def like(self) -> Tensor:
        """A tensor of the parameter's shape and type, whose values do not matter."""
        return self.weight

    @property
    def device(self) -> torch.device:
        """Where the parameter is."""
        return self.weight.device

    @property
    def bias(self) -> Tensor | None:
        """The layer's frozen bias, where it has one that is added to the output's channels."""
        return self.layer._parameters.get("bias") if self.parameter == "weight" else None

    @abstractmethod
    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes behind the rank of a down factor (rank, ...) and behind (out, rank) of an up factor."""

    def to_matrix(self, weight: Tensor) -> Tensor:
        """The parameter as a matrix (out, in), or a stack of them."""
        return weight.flatten(1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of `to_matrix`."""
        return matrix.reshape(self.like().shape)

    def matrix(self) -> Tensor:
        """The frozen parameter as a matrix."""
        return self.to_matrix(self.weight.detach())

    def output(self, x: Tensor) -> Tensor:
        """What the frozen layer itself gives for `x`."""
        cls = getattr(type(self.layer), "adapted_class", type(self.layer))
        output: Tensor = cls.forward(self.layer, x)
        return output

    def apply(self, weight: Tensor, bias: Tensor | None, input: Tensor, **options: Any) -> Tensor:
        """The layer's output for `input` with `weight` and `bias` in place of its own. `options` are what
        else its forward takes."""
        raise NotImplementedError  # only layers that are called need it

    def low_rank(
        self,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: float,
        dropout: float = 0.0,
        magnitude: Tensor | None = None,
    ) -> Tensor | None:
        """The layer's output under the update scale · B·A, without forming it; None where that has no
        advantage. A and B are factors in the layer's own shapes; `dropout` is for the update's input;
        with a `magnitude` (out,), each row of the sum has that norm (DoRA)."""
        if magnitude is not None:
            return None
        return self.add_low_rank(self.output(x), x, A, B, scale, dropout)

    def add_low_rank(
        self, output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0
    ) -> Tensor | None:
        """The same, added to an `output` that is the caller's own and may be written into."""
        return None

    def along_channels(self, values: Tensor, output: Tensor) -> Tensor:
        """`values` (out,) in a shape and type that broadcasts over `output`."""
        axis = self.channel_axis % output.ndim
        return values.to(output.dtype).view(-1, *[1] * (output.ndim - axis - 1))

    def filed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An adapter's tensors as files hold them for this layer."""
        return dict(tensors)

    def file_kind(self) -> str:
        """What files call such a parameter; see `LayerState`."""
        return "layer" if self.called else "parameter"

    def spec(self, dtype: torch.dtype | None = None) -> WeightSpec:
        """What a method is told. `dtype` None means the weight's own, or float32 beside half precision."""
        weight = self.like()
        down_shape, up_shape = self.factor_shapes()
        *stack, rows, columns = self.to_matrix(weight).shape
        own = torch.float32 if weight.dtype in _COARSE else weight.dtype
        return WeightSpec(
            kind=self.kind,
            shape=tuple(weight.shape),
            stack=tuple(stack),
            matrix_shape=(rows, columns),
            down_shape=down_shape,
            up_shape=up_shape,
            groups=int(getattr(self.layer, "groups", 1)),
            has_bias=self.bias is not None,
            dtype=dtype or own,
            device=self.device,
        )
