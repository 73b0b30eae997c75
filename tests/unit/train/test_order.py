"""The order of examples of several groups, such as pictures of several shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorimer.train.order import Order
from lorimer.train.seeding import number_of

several = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(tuple)


@given(several, st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_no_batch_mixes_groups_and_an_epoch_reads_every_example_once(
    groups: tuple[int, ...], batch: int, accumulation: int, ranks: int, seed: int
) -> None:
    count = len(groups)
    orders = [Order(count, batch, accumulation, seed, rank, ranks, groups) for rank in range(ranks)]
    steps = orders[0].steps_per_epoch
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            pieces = [micro for order in orders for micro in order.step(step)]
            assert pieces and orders[0].epoch(step) == epoch
            assert sum(micro.share for micro in pieces) == pytest.approx(1)
            assert sorted(micro.number for micro in pieces) == list(range(len(pieces)))
            read = orders[0].examples_in(step)
            assert sum(len(micro.examples) for micro in pieces) == read <= orders[0].examples_per_step
            for micro in pieces:
                assert 0 < len(micro.examples) <= batch
                assert len({groups[example] for example in micro.examples}) == 1
                assert micro.share == pytest.approx(len(micro.examples) / read)
            seen += [example for micro in pieces for example in micro.examples]
        assert sorted(seen) == list(range(count))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_one_group_has_the_order_of_none_which_is_a_cut_permutation(
    count: int, batch: int, accumulation: int, ranks: int, seed: int
) -> None:
    plain = Order(count, batch, accumulation, seed, 0, ranks)
    grouped = Order(count, batch, accumulation, seed, 0, ranks, (7,) * count)
    for step in range(2 * plain.steps_per_epoch):
        assert plain.step(step) == grouped.step(step)
        assert plain.examples_in(step) == grouped.examples_in(step)
        # As it was before there were groups: resuming an old run must not change what it reads.
        generator = torch.Generator().manual_seed(number_of(seed, "epoch", plain.epoch(step)))
        begin = step % plain.steps_per_epoch * plain.examples_per_step
        chosen = torch.randperm(count, generator=generator)[begin : begin + plain.examples_per_step]
        mine = [piece.tolist() for piece in chosen.split(batch)][0::ranks]
        assert [list(micro.examples) for micro in plain.step(step)] == mine


def test_batches_of_groups_come_in_an_order_of_chance_that_any_start_repeats() -> None:
    groups = (0,) * 40 + (1,) * 40
    order = Order(80, 4, 1, 0, groups=groups)
    kinds = [groups[order.step(step)[0].examples[0]] for step in range(20)]
    changes = sum(one != other for one, other in itertools.pairwise(kinds))
    assert 4 < changes < 16  # neither one group after the other nor in turns
    assert kinds != [groups[order.step(step)[0].examples[0]] for step in range(20, 40)]
    fresh = Order(80, 4, 1, 0, groups=groups)
    assert [fresh.step(step) for step in (33, 7, 0)] == [order.step(step) for step in (33, 7, 0)]


def test_groups_for_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups for 4 examples"):
        Order(4, 1, 1, 0, groups=(0, 0, 1))


def test_micro_batches_count_by_the_weights_of_their_examples() -> None:
    weights = tuple(float(1 + number % 5) for number in range(10))
    order = Order(10, batch_size=2, accumulation=2, seed=3, weights=weights)
    for step in range(order.steps_per_epoch):
        micros = order.step(step)
        total = sum(weights[example] for micro in micros for example in micro.examples)
        assert [micro.share * total for micro in micros] == pytest.approx(
            [sum(weights[example] for example in micro.examples) for micro in micros]
        )
