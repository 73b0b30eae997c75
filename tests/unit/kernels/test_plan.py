"""The cheapest way is chosen by counting, and never one that loses precision or what it needs."""

from __future__ import annotations

import pytest
import torch

from lorimer.kernels.plan import choose, mergeable


def multiplications(plan, positions: int, rows: int, columns: int, rank: int) -> int:
    """Of one training step's low-rank part, as the file's head counts them; what all ways share left out."""
    merging = rank * rows * columns
    forward = merging if plan.merge_forward else positions * rank * rows
    backward = merging if plan.merge_backward else positions * rank * columns
    return forward + backward + (positions * rank * columns)


@pytest.mark.parametrize("positions", [1, 100, 1024, 5000, 100_000])
@pytest.mark.parametrize(("rows", "columns"), [(64, 576), (576, 64), (576, 576), (1536, 576)])
def test_the_choice_never_costs_more_than_the_factors(positions, rows, columns):
    chosen = choose(positions, rows, columns, 8, mergeable=True, trains_B=True, keeps_input=True)
    factors = choose(positions, rows, columns, 8, mergeable=False, trains_B=True, keeps_input=True)
    cost, plain = (multiplications(plan, positions, rows, columns, 8) for plan in (chosen, factors))
    assert cost <= plain
    if positions == 100_000:
        assert chosen.merge_forward and chosen.merge_backward and cost < 0.5 * plain


def test_few_tokens_go_through_the_factors():
    plan = choose(16, 576, 576, 8, mergeable=True, trains_B=True, keeps_input=True)
    assert not plan.merge_forward and not plan.merge_backward and plan.keep_hidden


def test_without_the_input_the_hidden_is_kept():
    plan = choose(100_000, 64, 64, 64, mergeable=True, trains_B=True, keeps_input=False)
    assert plan.keep_hidden and not plan.merge_forward


def test_a_hidden_as_wide_as_the_input_is_computed_again():
    assert not choose(10, 64, 64, 32, mergeable=False, trains_B=True, keeps_input=True).keep_hidden


def test_nothing_is_kept_that_no_gradient_asks_for():
    assert not choose(10, 64, 64, 4, mergeable=True).keep_hidden


@pytest.mark.parametrize(
    ("weight", "computed", "dropout", "expected"),
    [
        (torch.float32, torch.float32, 0.0, True),
        (torch.float64, torch.float64, 0.0, True),
        (torch.float32, torch.float32, 0.1, False),
        (torch.bfloat16, torch.bfloat16, 0.0, False),
        (torch.float32, torch.bfloat16, 0.0, False),
    ],
)
def test_merging_must_not_round_the_update_away(weight, computed, dropout, expected):
    assert mergeable(torch.empty(2, 2, dtype=weight), computed, dropout) is expected
