"""Embeddings: a row of the weight for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lorimer.layers.geometry import Geometry


class EmbeddingGeometry(Geometry):
    """weight (tokens, width), as a matrix (out = width, in = tokens): the layer is that matrix times a
    one-hot vector. The row of a padding token stays as it was, as torch leaves it in training."""

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
        padding = self.layer.padding_idx
        if padding is None:
            return matrix.T
        row = torch.tensor([padding], device=matrix.device)
        return matrix.T.index_copy(0, row, self.weight[row].detach().to(matrix.dtype))

    def apply(self, weight: Tensor, bias: Tensor | None, input: Tensor, **options: Any) -> Tensor:
        layer = self.layer
        return F.embedding(input, weight, layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq)

    def add_low_rank(
        self, output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0
    ) -> Tensor | None:
        if self.layer.scale_grad_by_freq:
            return None  # it scales the gradient of the weight's rows, which only the weight path has
        hidden = F.embedding(x, A.T) * scale  # (..., rank): the columns of A that the tokens choose
        change = F.linear(hidden, B.to(hidden.dtype)).to(output.dtype)
        return output + self._without_padding(x, change)

    def _without_padding(self, x: Tensor, change: Tensor) -> Tensor:
        """The change of the output, none where the token is padding."""
        if self.layer.padding_idx is None:
            return change
        return change.masked_fill((x == self.layer.padding_idx).unsqueeze(-1), 0.0)


class TiedEmbeddingGeometry(EmbeddingGeometry):
    """An embedding whose weight (tokens, width) is also a Linear's, and is seen from that side: a matrix
    (out = tokens, in = width). A padding token's row is the Linear's too, so it changes, but learns nothing
    here."""

    mirrored: ClassVar[bool] = True

    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.layer.embedding_dim,), ()

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix

    def filed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mirror = {"A": "B", "B": "A", "A0": "B0", "B0": "A0"}
        return {mirror[name]: tensor.T.contiguous() for name, tensor in tensors.items()}

    def add_low_rank(
        self, output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0
    ) -> Tensor | None:
        return super().add_low_rank(output, x, B.T, A.T, scale, dropout)

    def _without_padding(self, x: Tensor, change: Tensor) -> Tensor:
        if self.layer.padding_idx is None:
            return change
        return torch.where((x == self.layer.padding_idx).unsqueeze(-1), change.detach(), change)
