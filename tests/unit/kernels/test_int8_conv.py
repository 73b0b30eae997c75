"""Convolutions in 8-bit integers: within the bound that holds for each patch, in both directions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorimer.kernels.int8 import LEVELS, weight_levels
from lorimer.kernels.int8_conv import Int8Convolution, fits_convolution, int8_conv
from tests.tolerances import INT8_ROUNDING


def bound(x: Tensor, filters: Tensor, padding: tuple[int, ...]) -> Tensor:
    """`int8.error_bound` with the picture's scale for each of its patches."""
    s_x = x.abs().amax((1, 2, 3), keepdim=True) / LEVELS
    s_w = filters.abs().amax((1, 2, 3))[:, None, None] / weight_levels(filters.device)
    patch = F.conv2d(x.abs(), torch.ones_like(filters[:1]), padding=padding)
    length = filters[0].numel()
    return s_x * filters.abs().sum((1, 2, 3))[:, None, None] / 2 + s_w * patch / 2 + length * s_x * s_w / 4


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("kernel", "padding"), [((1, 1), (0, 0)), ((3, 3), (1, 1)), ((3, 2), (2, 0))])
def test_output_and_gradient_are_within_the_bound(kernel, padding, channels_last) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, kernel, padding=padding)
    x = torch.randn(2, 5, 6, 4) * torch.tensor([1e-3, 100.0])[:, None, None, None]
    x[:, 0, 0, 0] *= 50
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()
    weight, exact = layer.weight.detach(), layer(x)
    y = int8_conv(x, Int8Convolution.of(weight, padding), layer.bias)
    assert y.stride() == exact.stride()
    g = torch.randn_like(exact)
    (dx,), (exact_dx,) = torch.autograd.grad(y, x, g), torch.autograd.grad(exact, x, g)
    around = (kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1])
    turned = weight.flip(2, 3).transpose(0, 1)
    for ours, truth, limit in [
        (y, exact, bound(x.detach(), weight, padding)),
        (dx, exact_dx, bound(g, turned, around)),
    ]:
        error = (ours - truth).abs()
        assert error.max() > 0
        assert (error <= limit * (1 + INT8_ROUNDING) + INT8_ROUNDING * truth.abs().max()).all()


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding": 3},
        {"padding_mode": "reflect", "padding": 1},
    ],
)
def test_what_has_no_such_gradient_is_left_alone(options) -> None:
    assert fits_convolution(nn.Conv2d(4, 4, 3, padding=1))
    assert not fits_convolution(nn.Conv2d(4, 4, 3, **options))
