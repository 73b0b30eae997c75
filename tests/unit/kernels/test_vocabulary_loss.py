"""The chunked loss is cross-entropy over all logits, in value and gradient, without holding them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from lorimer.kernels.vocabulary_loss import token_losses, weighted_loss

TOKENS, WIDTH, VOCABULARY = 11, 6, 37
WAYS = [{"softcap": softcap, "scale": scale} for softcap, scale in itertools.product((None, 3.0), (1.0, 0.4))]


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    bias = torch.randn(VOCABULARY, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, VOCABULARY, (TOKENS,))


def plainly(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, softcap: Any, scale: Any
) -> Tensor:
    logits = linear(hidden, weight, bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return cross_entropy(logits, targets, reduction="none")


@pytest.mark.parametrize("chunk", [1, 4, TOKENS, 100, None])
@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_value_and_gradients_are_those_of_all_logits(ways: dict[str, Any], chunk: int | None) -> None:
    hidden, weight, bias, targets = case()
    weights = torch.rand(TOKENS, dtype=torch.float64)
    expected = (plainly(hidden, weight, bias, targets, **ways) * weights).sum()
    wanted = torch.autograd.grad(expected, (hidden, weight, bias))
    each = token_losses(hidden, weight, bias, targets, chunk=chunk, **ways)
    for loss in (
        weighted_loss(hidden, weight, bias, targets, weights, chunk=chunk, **ways),
        (each * weights).sum(),
    ):
        torch.testing.assert_close(loss, expected)
        for got, right in zip(torch.autograd.grad(loss, (hidden, weight, bias)), wanted, strict=True):
            torch.testing.assert_close(got, right)


def test_a_head_that_is_more_than_a_product_is_called() -> None:
    hidden, weight, bias, targets = case()
    head = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)
    weights = torch.rand(TOKENS, dtype=torch.float64)
    loss = weighted_loss(hidden, weight, bias, targets, weights, chunk=3, head=lambda x: 2.0 * head(x))
    expected = (cross_entropy(2.0 * head(hidden), targets, reduction="none") * weights).sum()
    torch.testing.assert_close(loss, expected)
    inputs = (hidden, head.weight, head.bias)
    for got, right in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(got, right)


def test_no_gradient_is_made_where_none_is_wanted() -> None:
    hidden, weight, _, targets = case()
    loss = weighted_loss(hidden, weight.detach(), None, targets, torch.ones(TOKENS))
    loss.backward()
    assert hidden.grad is not None and weight.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_states_give_a_loss_in_float32_near_the_exact_one(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = case()
    narrow = [each.detach().to(dtype) for each in (hidden, weight, bias)]
    got = token_losses(*narrow, targets)
    assert got.dtype == torch.float32
    exact = cross_entropy(linear(*(each.double() for each in narrow)), targets, reduction="none")
    assert (got - exact).abs().max() < 2 * torch.finfo(dtype).eps * WIDTH * linear(*narrow).abs().max()


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_vocabulary() -> None:
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    hidden = torch.randn(64, 8, requires_grad=True)
    weight, targets = torch.randn(5000, 8), torch.randint(0, 5000, (64,))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda each: each):
        weighted_loss(hidden, weight, None, targets, torch.ones(64), chunk=4)
    assert max(kept) <= 64 * 8
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda each: each):
        token_losses(hidden, weight, None, targets, chunk=4)
    assert sorted(kept) == [64, 64 * 8, 5000 * 8]  # targets, states and the head's own weight
