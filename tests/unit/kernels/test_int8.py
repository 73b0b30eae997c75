"""Products in 8-bit integers: how far they may be off, and that nothing else about the layer changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorimer.kernels import int8
from lorimer.kernels.int8 import (
    Int8Block,
    Int8Weight,
    error_bound,
    expected_error,
    int8_linear,
    quantise_rows,
)
from tests.tolerances import INT8_EXPECTED, INT8_ROUNDING

SHAPES = [(4, 7, 9), (1, 64, 32), (33, 48, 1), (3, 1, 5), (6, int8.LONG + 100, 3)]


def case(tokens: int, inputs: int, outputs: int, outlier: float = 1.0) -> tuple[Tensor, Tensor]:
    """x (tokens, in) with rows of very different size, and a weight (out, in) alike."""
    generator = torch.Generator().manual_seed(tokens + inputs + outputs)
    x = torch.randn(tokens, inputs, generator=generator) * 10.0 ** torch.linspace(-6, 4, tokens)[:, None]
    weight = (
        torch.randn(outputs, inputs, generator=generator) * 10.0 ** torch.linspace(-3, 1, outputs)[:, None]
    )
    x[:, 0] *= outlier
    weight[:, -1] *= outlier
    return x, weight


def errors(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    return (y.double() - x.double() @ weight.double().T).abs()


@pytest.mark.parametrize("outlier", [1.0, 1000.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradient_are_within_the_bound(shape: tuple[int, int, int], outlier: float) -> None:
    x, weight = case(*shape, outlier)
    g = case(shape[0], shape[2], 1)[0]
    x.requires_grad_()
    y = int8_linear(x, Int8Weight.of(weight))
    (dx,) = torch.autograd.grad(y, x, g)
    x = x.detach()
    rounding = 1 + INT8_ROUNDING
    assert (errors(x, weight, y.detach()) <= rounding * error_bound(x.double(), weight.double())).all()
    assert (errors(g, weight.T, dx) <= rounding * error_bound(g.double(), weight.T.double())).all()


def test_the_error_is_no_larger_than_rounding_must_make_it() -> None:
    """A lost level, a scale in the wrong place or truncation in place of rounding would show here."""
    x, weight = case(64, 200, 50)
    y = int8_linear(x, Int8Weight.of(weight))
    ratio = errors(x, weight, y) / expected_error(x.double(), weight.double())
    assert ratio.square().mean().sqrt().item() == pytest.approx(1.0, rel=INT8_EXPECTED)


def test_the_bound_can_be_reached() -> None:
    """Every entry rounded by half a step in the same direction: the bound is not merely large."""
    half_steps = torch.full((1, 101), 0.499)
    x = torch.cat([torch.full((1, 1), 127.0), half_steps], 1)
    weight = torch.cat([torch.zeros(1, 1), torch.ones(1, 101)], 1)
    error = errors(x, weight, int8_linear(x, Int8Weight.of(weight)))
    of_x_alone = (0.5 * weight.abs().sum()).item()
    assert 0.99 * of_x_alone < error.item() <= error_bound(x, weight).item()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, weight = case(8, 32, 16)
    copy = Int8Weight.of(weight)
    singly = torch.cat([int8_linear(row[None], copy) for row in x])
    assert torch.equal(int8_linear(x, copy), singly)
    assert torch.equal(int8_linear(x.view(2, 4, 32), copy), singly.view(2, 4, 16))


def test_an_outlier_in_a_long_row_spoils_its_block_only() -> None:
    """The gradient at a vocabulary's scores: one large entry, very many small ones that matter together."""
    words, width = 8192, 8
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(words, width, generator=generator) + 1.0
    g = torch.softmax(torch.randn(4, words, generator=generator), 1)
    g[:, 5] -= 1.0
    exact = g @ weight
    by_blocks = Int8Weight.of(weight).backward.multiply(g)
    in_one = Int8Block.of(weight.T.contiguous(), packed=False).multiply(g)
    assert (in_one - exact).norm() > 0.3 * exact.norm()
    assert (by_blocks - exact).norm() < 0.1 * exact.norm()  # one of sixteen blocks is lost


def test_both_products_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's and `torch._int_mm`, which other devices take: integer sums have no rounding."""
    x, weight = case(5, 24, 16)
    packed = Int8Weight.of(weight).forward.multiply(x)
    monkeypatch.setattr(int8, "has_packed_product", lambda device: False)
    plain = Int8Weight.of(weight).forward.multiply(x)
    assert (packed - plain).abs().max() <= INT8_ROUNDING * plain.abs().max()


def test_codes_use_every_level_and_zero_stays_zero() -> None:
    codes, scales = quantise_rows(torch.tensor([[-3.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1e-42, 0.0, 0.0]]))
    assert codes[0].tolist() == [-127, 0, 42] and scales[0].item() == pytest.approx(3 / 127)
    assert not codes[1].any() and scales[1].item() == 0.0
    y = int8_linear(torch.zeros(2, 3), Int8Weight.of(torch.zeros(4, 3)), torch.arange(4.0))
    assert torch.equal(y, torch.arange(4.0).expand(2, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    x, weight = case(3, 6, 4)
    expected = int8_linear(x, Int8Weight.of(weight))
    x[1, 2] = bad
    y = int8_linear(x, Int8Weight.of(weight))
    assert not y[1].isfinite().any()
    assert torch.equal(y[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_are_those_of_linear(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(3, 6).to(dtype).requires_grad_(), torch.randn(4, 6).to(dtype), torch.ones(4)
    bias = bias.to(dtype).requires_grad_()
    y = int8_linear(x, Int8Weight.of(weight), bias)
    dx, dbias = torch.autograd.grad(y.sum(), [x, bias])
    assert y.dtype == dx.dtype == dbias.dtype == dtype
    assert torch.equal(dbias, torch.full_like(bias, 3.0))
    with torch.autocast("cpu", torch.bfloat16):
        y, like = int8_linear(x.float(), Int8Weight.of(weight), bias), F.linear(x.float(), weight.float())
    assert y.dtype == like.dtype == torch.bfloat16


def test_nothing_is_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []
    x, weight = case(4, 8, 6)
    copy = Int8Weight.of(weight)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        int8_linear(x.requires_grad_(), copy, torch.ones(6))
    assert not kept


def test_empty_input() -> None:
    copy = Int8Weight.of(torch.randn(4, 6))
    x = torch.zeros(0, 6, requires_grad=True)
    y = int8_linear(x, copy)
    y.sum().backward()
    assert y.shape == (0, 4) and x.grad is not None and x.grad.shape == (0, 6)
