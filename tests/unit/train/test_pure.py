"""The pure parts: schedules, the order of the data, random state, optimiser state as files."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import lorimer
from lorimer import LoRA
from lorimer.errors import FileFormatError
from lorimer.formats.safe_io import read_json, write_json
from lorimer.train.optimizer import build_optimizer, set_learning_rate
from lorimer.train.optimizer_state import flatten_state, unflatten_state
from lorimer.train.order import Order, SeededExamples
from lorimer.train.schedule import factor
from lorimer.train.sections import TrainSection
from lorimer.train.seeding import random_state_kept, seed_all
from tests.unit.train import small


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(1, 60),
    st.integers(0, 70),
)
def test_a_schedule_stays_above_zero_rises_in_warmup_and_then_never_rises(
    schedule: str, steps: int, warmup: int
) -> None:
    factors = [factor(schedule, step, steps, warmup) for step in range(steps)]  # type: ignore[arg-type]
    assert all(0 < value <= 1 for value in factors)
    assert all(a < b for a, b in itertools.pairwise(factors[:warmup]))
    assert all(a >= b for a, b in itertools.pairwise(factors[warmup:]))


def test_schedules_have_the_values_of_their_formulas() -> None:
    assert [factor("linear", step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert factor("cosine", 2, 4) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert [factor("constant", step, 9, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@given(
    examples=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    ranks=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_an_epoch_reads_every_example_once_and_shares_add_up_to_one(
    examples: int, batch_size: int, accumulation: int, ranks: int, seed: int
) -> None:
    orders = [Order(examples, batch_size, accumulation, seed, rank, ranks) for rank in range(ranks)]
    for epoch in range(2):
        seen: list[int] = []
        for step in range(orders[0].steps_per_epoch):
            place = epoch * orders[0].steps_per_epoch + step
            pieces = [micro for order in orders for micro in order.step(place)]
            assert sum(micro.share for micro in pieces) == pytest.approx(1)
            assert sorted(micro.number for micro in pieces) == list(range(len(pieces)))
            assert sum(len(micro.examples) for micro in pieces) == orders[0].examples_in(place)
            seen += [example for micro in pieces for example in micro.examples]
        assert sorted(seen) == list(range(examples))


def test_any_cut_of_a_step_reads_the_same_examples() -> None:
    def read(batch: int, accumulation: int, rank: int = 0, ranks: int = 1) -> list[set[int]]:
        order = Order(21, batch, accumulation, 3, rank, ranks)
        return [{each for micro in order.step(step) for each in micro.examples} for step in range(7)]

    whole = read(8, 1)
    assert whole == read(4, 2) == read(2, 4)
    assert whole == [a | b for a, b in zip(read(4, 1, 0, 2), read(4, 1, 1, 2), strict=True)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, other = Order(30, 30, 1, 0), Order(30, 30, 1, 1)
    assert first.step(0)[0].examples != first.step(1)[0].examples
    assert first.step(0)[0].examples != other.step(0)[0].examples
    assert first.step(5) == Order(30, 30, 1, 0).step(5)


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_random_state_follows_from_the_place_alone() -> None:
    seed_all(0, "step", 3, 1)
    first = draw()
    seed_all(0, "step", 3, 2)
    other = draw()
    seed_all(0, "step", 3, 1)
    assert draw() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_caller_s_random_state_is_kept() -> None:
    seed_all("mine")
    expected = draw()
    seed_all("mine")
    with random_state_kept():
        seed_all("theirs")
        draw()
    assert draw() == expected


def test_an_example_s_random_draws_depend_on_its_place_alone() -> None:
    data = SeededExamples(small.restless_points(), seed=0)
    first = data[0, 3][0]
    data[0, 4], data[1, 3]
    assert torch.equal(data[0, 3][0], first)
    assert not torch.equal(data[1, 3][0], first)
    assert not torch.equal(SeededExamples(small.restless_points(), seed=1)[0, 3][0], first)


def optimizer_of(adapter: lorimer.AttachedAdapter, train: TrainSection) -> torch.optim.Optimizer:
    return build_optimizer(adapter.parameter_groups(train.learning_rate, train.fast_ratio), train)


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_optimiser_state_comes_back_as_it_was(tmp_path, kind: str) -> None:  # type: ignore[no-untyped-def]
    adapter = lorimer.attach(small.net(), LoRA(2))
    train = TrainSection(optimizer=kind, fast_ratio=4, weight_decay=0.1)  # type: ignore[arg-type]
    optimizer = stepped(optimizer_of(adapter, train))
    tensors, data = flatten_state(optimizer.state_dict())
    write_json(tmp_path / "state.json", data)
    again = optimizer_of(adapter, train)
    again.load_state_dict(unflatten_state(tensors, read_json(tmp_path / "state.json")))
    assert str(again.state_dict()["state"]) == str(optimizer.state_dict()["state"])
    assert [group["lr"] for group in again.param_groups] == [1e-3, 4e-3]


@pytest.mark.parametrize(
    "data", [{"tensor": "gone"}, {"items": [[1]]}, {"items": 3}, {"else": 1}, {"items": {}, "x": []}]
)
def test_broken_optimiser_state_is_one_typed_error(data: object) -> None:
    if data == {"items": {}, "x": []}:
        assert unflatten_state({}, data) == {}
        return
    with pytest.raises(FileFormatError):
        unflatten_state({}, data)


def test_state_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match=r"optimizer\.state\.0"):
        flatten_state({"state": {0: object()}})


def test_lora_plus_gives_each_parameter_one_group_and_its_rate_through_the_schedule() -> None:
    adapter = lorimer.attach(small.net(), LoRA(2))
    train = TrainSection(fast_ratio=16, learning_rate=0.1, schedule="linear", steps=4)
    optimizer = optimizer_of(adapter, train)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len({id(each) for each in grouped}) == len(list(adapter.parameters()))
    assert set_learning_rate(optimizer, train, 2) == pytest.approx(0.05)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in adapter.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.05 * (16 if name.endswith("B") else 1))


def test_points_are_what_they_say() -> None:
    data = small.points(3)
    assert isinstance(data, TensorDataset) and torch.equal(data[0][0].sum(), data[0][1][0])
