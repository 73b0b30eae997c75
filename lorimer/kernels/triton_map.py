"""A linear map that drops its input on the way, for the GPUs that Triton compiles for.

It stands in a call for the map by which A meets the input; the layer's own weight keeps the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorimer.kernels.maps import LinearMap
from lorimer.kernels.triton_products import correlate, narrow, widen


@dataclass(frozen=True)
class DroppingLinear(LinearMap):
    """y = A drop(x) and its gradients, under one mask however often it is asked.

    p: the probability with which an entry is dropped. seed: draws the mask, () of type long on x's device.
    """

    p: float
    seed: Tensor

    @staticmethod
    def drawn(p: float, device: torch.device) -> DroppingLinear:
        """With a seed from the device's own generator, which gradient checkpointing restores and CUDA graphs
        advance."""
        return DroppingLinear(p, torch.randint(2**62, (), device=device))

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        assert bias is None, "the factor A has no bias"
        hidden = narrow(_matrix(x), weight.contiguous(), self.p, self.seed)
        return hidden.view(*x.shape[:-1], len(weight))

    def input_gradient(self, g: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return widen(_matrix(g), weight.contiguous(), self.p, self.seed).view(like.shape)

    def add_input_gradient_(self, dx: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        if not dx.is_contiguous():
            return dx.add_(self.input_gradient(g, weight, dx))
        widen(_matrix(g), weight.contiguous(), self.p, self.seed, onto=dx.view(-1, dx.shape[-1]))
        return dx

    def weight_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return correlate(_matrix(g), _matrix(x), self.p, self.seed)


def _matrix(t: Tensor) -> Tensor:
    """(..., n) -> (tokens, n), its memory in order."""
    return t.reshape(-1, t.shape[-1]).contiguous()
