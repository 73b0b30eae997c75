"""The kernels' truth: their formulas in ordinary differentiable operations, and the cases to hold them on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorimer.kernels.low_rank import Convolution

CONVOLVE = {
    (1, False): F.conv1d,
    (2, False): F.conv2d,
    (3, False): F.conv3d,
    (1, True): F.conv_transpose1d,
    (2, True): F.conv_transpose2d,
    (3, True): F.conv_transpose3d,
}


def linear(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return F.linear(x, W + scale * B @ A, b)


def dora_linear(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, m: Tensor, scale: float
) -> Tensor:
    moved = W + scale * B @ A
    return F.linear(x, m[:, None] * moved / moved.norm(dim=1, keepdim=True).detach(), b)


def convolve(x: Tensor, W: Tensor, b: Tensor | None, how: Convolution) -> Tensor:
    function = CONVOLVE[len(how.stride), how.transposed]
    if how.transposed:
        axes = len(how.stride)
        return function(x, W, b, how.stride, how.padding, how.output_padding[:axes], 1, how.dilation)
    return function(x, W, b, how.stride, how.padding, how.dilation)


def conv_update(A: Tensor, B: Tensor, scale: float, how: Convolution) -> Tensor:
    """scale · B A in the shape of the weight."""
    if how.transposed:
        return scale * torch.einsum("or,ir...->io...", B.flatten(1), A)
    return scale * torch.einsum("or,ri...->oi...", B.flatten(1), A)


def conv(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float, how: Convolution
) -> Tensor:
    return convolve(x, W + conv_update(A, B, scale, how), b, how)


def dora_conv(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, m: Tensor, scale: float, how: Convolution
) -> Tensor:
    moved = W + conv_update(A, B, scale, how)
    out = 1 if how.transposed else 0
    axes = [axis for axis in range(W.dim()) if axis != out]
    norm = moved.pow(2).sum(axes, keepdim=True).sqrt().detach()
    return convolve(x, moved / norm * m.view_as(norm), b, how)


@dataclass(frozen=True)
class ConvCase:
    """A convolution with channels 5 -> 6 and rank 2, and the size of what it looks at."""

    name: str
    how: Convolution
    kernel: tuple[int, ...]
    space: tuple[int, ...]

    def tensors(self, dtype: torch.dtype = torch.float64, batch: int = 3) -> dict[str, Tensor]:
        """x, W, b, A, B, m by name, drawn off any special value."""
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64).to(dtype)  # noqa: E731
        swap = (lambda a, b: (b, a)) if self.how.transposed else (lambda a, b: (a, b))
        return {
            "x": draw(batch, 5, *self.space),
            "W": draw(*swap(6, 5), *self.kernel),
            "b": draw(6),
            "A": draw(*swap(2, 5), *self.kernel),
            "B": draw(6, 2, *[1] * len(self.kernel)),
            "m": draw(6).abs() + 0.5,
        }


CONVOLUTIONS = [
    ConvCase("1d", Convolution((2,), (1,), (1,)), (3,), (9,)),
    ConvCase("2d", Convolution((1, 2), (1, 0), (2, 1)), (3, 2), (7, 6)),
    ConvCase("2d-many-pixels", Convolution((1, 1), (1, 1), (1, 1)), (3, 3), (12, 12)),
    ConvCase("2d-pointwise", Convolution((1, 1), (0, 0), (1, 1)), (1, 1), (6, 6)),
    ConvCase("3d", Convolution((1, 1, 1), (1, 0, 1), (1, 1, 1)), (2, 3, 2), (3, 4, 3)),
    ConvCase("1d-transposed", Convolution((2,), (1,), (1,), True, (1,)), (3,), (5,)),
    ConvCase("2d-transposed", Convolution((2, 1), (1, 0), (1, 2), True, (1, 0)), (3, 2), (4, 5)),
    ConvCase("3d-transposed", Convolution((2, 1, 1), (0, 1, 0), (1, 1, 1), True), (2, 2, 2), (2, 3, 2)),
]
