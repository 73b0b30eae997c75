"""Linear layers: `nn.Linear`, and Hugging Face's `Conv1D`, which is one with its weight transposed."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lorimer.kernels.dora import dora_linear
from lorimer.kernels.low_rank import adapted_linear, add_low_rank
from lorimer.layers.geometry import Geometry


class LinearGeometry(Geometry):
    """weight (out, in)."""

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.to_matrix(self.like()).shape[1],), ()

    def apply(self, weight: Tensor, bias: Tensor | None, input: Tensor, **options: Any) -> Tensor:
        return F.linear(input, self.to_matrix(weight), bias)

    def low_rank(
        self,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: float,
        dropout: float = 0.0,
        magnitude: Tensor | None = None,
    ) -> Tensor | None:
        if x.is_nested:
            return None  # sentences of different length side by side: torch alone can multiply them
        if not self.layer.plain_forward:
            return super().low_rank(x, A, B, scale, dropout, magnitude)
        weight, bias = self.to_matrix(self.weight), self.bias
        if magnitude is None:
            return adapted_linear(x, weight, bias, A, B, scale, dropout)
        return dora_linear(x, weight, bias, A, B, magnitude, scale, dropout)

    def add_low_rank(
        self, output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0
    ) -> Tensor | None:
        return None if x.is_nested else add_low_rank(output, x, A, B, scale, dropout)


class TransposedLinearGeometry(LinearGeometry):
    """weight (in, out), as in Hugging Face's `Conv1D`."""

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.T.contiguous()  # as the layer has it: a product's last bits depend on the order


def is_hugging_face_conv1d(layer: object) -> bool:
    """Told by its name, so that transformers need not be installed."""
    return any(
        cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"
        for cls in type(layer).__mro__
    )
