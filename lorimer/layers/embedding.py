"""Embeddings: a row of the weight for each token."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lorimer.layers.geometry import Geometry


class EmbeddingGeometry(Geometry):
    """weight (tokens, width), as a matrix (out = width, in = tokens): the layer is that matrix times a
    one-hot vector."""

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.layer.num_embeddings,), ()

    def file_kind(self) -> str:
        return "embedding"

    @property
    def bias(self) -> Tensor | None:
        return None

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.T

    def apply(self, weight: Tensor, bias: Tensor | None, input: Tensor, **options: Any) -> Tensor:
        layer = self.layer
        return F.embedding(
            input, weight, layer.padding_idx, layer.max_norm, layer.norm_type, layer.scale_grad_by_freq
        )

    def add_low_rank(
        self, output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0
    ) -> Tensor:
        hidden = F.embedding(x, A.T) * scale  # (..., rank): the columns of A that the tokens choose
        return output + F.linear(hidden, B.to(hidden.dtype)).to(output.dtype)
