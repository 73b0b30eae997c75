"""Losses of preferences: the papers' formulas, and what they push towards."""

from __future__ import annotations

import math

import pytest
import torch

from lorimer.tasks._preference_loss import dpo, ipo, orpo


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_dpo_is_its_formula_and_log_two_at_the_start() -> None:
    chosen, rejected, first, second = -3.0, -2.0, -4.0, -2.5
    margin = 0.1 * ((chosen - first) - (rejected - second))
    got = dpo(numbers(chosen), numbers(rejected), numbers(first), numbers(second), 0.1)
    assert got.item() == pytest.approx(math.log(1.0 + math.exp(-margin)))
    assert dpo(*(numbers(-3.0) for _ in range(4)), 0.1, 0.2).item() == pytest.approx(math.log(2.0))


def test_smoothed_dpo_is_a_mean_of_both_ways_round() -> None:
    values = [numbers(each) for each in (-3.0, -9.0, -4.0, -2.5)]
    there = dpo(*values, 0.1)
    back = dpo(values[1], values[0], values[3], values[2], 0.1)
    assert dpo(*values, 0.1, 0.3).item() == pytest.approx((0.7 * there + 0.3 * back).item())


def test_ipo_has_its_minimum_at_a_margin_of_half_over_beta() -> None:
    beta, zero = 0.25, numbers(0.0)
    assert ipo(numbers(0.5 / beta), zero, zero, zero, beta).item() == pytest.approx(0.0)
    assert ipo(zero, zero, zero, zero, beta).item() == pytest.approx(4.0)


def test_orpo_is_its_formula() -> None:
    p, q = 0.6, 0.3
    ratio = math.log((p / (1 - p)) / (q / (1 - q)))
    got = orpo(numbers(math.log(p)), numbers(math.log(q)), 0.1)
    assert got.item() == pytest.approx(-math.log(p) + 0.1 * math.log(1 + math.exp(-ratio)))
    assert math.isfinite(orpo(numbers(0.0), numbers(-1e-9), 0.1).item())


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo"])
def test_every_loss_makes_the_chosen_likelier_and_the_rejected_less(loss: str) -> None:
    chosen, rejected = numbers(-1.0, -2.0), numbers(-1.5, -0.7)
    same = numbers(-1.0, -1.0).detach()
    made = {
        "dpo": lambda: dpo(chosen, rejected, same, same, 0.1),
        "ipo": lambda: ipo(chosen, rejected, same, same, 0.1),
        "orpo": lambda: orpo(chosen, rejected, 0.1),
    }[loss]()
    made.backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()
