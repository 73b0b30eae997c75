"""Small layers of every adaptable kind and the inputs they take, for the adapter contracts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerCase:
    """A layer to adapt: how to make it and the shape of one input."""

    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]

    def model(self, dtype: torch.dtype) -> nn.Module:
        """The layer inside a model, seeded."""
        torch.manual_seed(0)
        return nn.Sequential(self.make()).to(dtype)

    def input(self, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.input_shape, generator=generator, dtype=torch.float32).to(dtype)


LAYERS = [
    LayerCase("linear", lambda: nn.Linear(6, 9), (4, 6)),
    LayerCase("linear-square-no-bias", lambda: nn.Linear(8, 8, bias=False), (2, 3, 8)),
    LayerCase("linear-to-one", lambda: nn.Linear(5, 1), (4, 5)),
    LayerCase("conv-1x1", lambda: nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    LayerCase("conv-3x3", lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 6, 5)),
    LayerCase("conv-5x3-stride", lambda: nn.Conv2d(3, 5, (5, 3), stride=(2, 1), bias=False), (2, 3, 9, 7)),
    LayerCase("conv-same-dilated", lambda: nn.Conv2d(3, 4, 3, padding="same", dilation=2), (2, 3, 7, 7)),
    LayerCase("conv-reflect", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 6)),
    LayerCase(
        "conv-circular",
        lambda: nn.Conv2d(3, 4, (3, 5), padding=(1, 2), padding_mode="circular"),
        (2, 3, 6, 6),
    ),
    LayerCase("conv-groups", lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    LayerCase("conv-depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2), (2, 4, 7, 7)),
]
