"""Recipes of every kind of adapter: methods' own fields, full training, starts that look at data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import lorimer
from lorimer.errors import Interrupted, RecipeError
from lorimer.train.engine import train
from lorimer.train.order import read_batches
from lorimer.train.setup import build
from lorimer.train.step import take_step
from tests.tolerances import SAME_NETWORK_OUTPUT, SAME_SUM, relative_difference
from tests.unit.train import small
from tests.unit.train.small import HERE, recipe
from tests.unit.train.test_resume import outcome, prepared, resume, stop_at

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "dropout": 0.1, "rslora": True, "start": "pissa", "bias": True},
    "dora": {"method": "dora", "rank": 2, "dropout": 0.1, "options": {"start": "olora"}},
    "adalora": {"method": "adalora", "rank": 3, "target_rank": 1, "interval": 2, "dropout": 0.1},
    "full": {"rank": 2, "targets": "0", "full": "3"},
    "rows": {"rank": 2, "targets": "3", "full": {"0": [1, 3]}},
    "eva": {"rank": 2, "start": "eva", "start_options": {"rho": 2}},
    "corda": {"rank": 2, "start": "corda", "start_options": {"mode": "knowledge-preserved"}},
    "lora-ga": {"rank": 2, "start": "lora-ga", "start_batches": 3},
}


def as_overrides(adapter: dict[str, Any]) -> list[str]:
    return [f"adapter.{name}={json.dumps(value)}" for name, value in adapter.items()]


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("stop", [2, 8])
def test_stopped_and_resumed_is_uninterrupted(tmp_path: Path, adapter: dict[str, Any], stop: int) -> None:
    overrides = as_overrides(adapter)
    train(prepared(tmp_path / "whole" / "style", *overrides))
    stop_at(tmp_path / "run" / "style", 2 + stop)
    with pytest.raises(Interrupted):
        train(prepared(tmp_path / "run" / "style", *overrides))
    resume(tmp_path / "run" / "style")
    expected, again = outcome(tmp_path / "whole" / "style"), outcome(tmp_path / "run" / "style")
    for name, value in expected.items():
        assert value == again[name], name


def test_adaloras_ranks_end_at_their_target(tmp_path: Path) -> None:
    result = train(recipe(tmp_path / "run", *as_overrides(ADAPTERS["adalora"]), "train.steps=20"))
    layers = lorimer.read(result.adapter).layers
    assert sum(int((layer.tensors["E"] != 0).sum()) for layer in layers.values()) == len(layers)


@pytest.mark.parametrize("name", ["adalora", "lora", "corda"])
def test_peft_reads_what_is_trained_by_methods_that_it_does_not_know(name: str, tmp_path: Path) -> None:
    result = train(recipe(tmp_path / "run", *as_overrides(ADAPTERS[name])))
    ours, theirs = small.net().eval(), small.net().eval()
    theirs.load_state_dict(ours.state_dict())
    lorimer.load(ours, result.adapter)
    theirs = PeftModel.from_pretrained(theirs, str(result.adapter.parent / "peft")).eval()
    x = torch.randn(5, 6)
    with lorimer.disabled(ours):
        assert not torch.allclose(ours(x), theirs(x))
    assert relative_difference(ours(x), theirs(x)) <= SAME_NETWORK_OUTPUT


def test_a_penalty_counts_once_however_a_step_is_cut(tmp_path: Path) -> None:
    after = {}
    for batch_size, accumulation in ((6, 1), (2, 3)):
        setup = build(
            recipe(
                tmp_path,
                *as_overrides({"method": "adalora", "rank": 2, "orthogonality": 3.0}),
                f"train.batch_size={batch_size}",
                f"train.gradient_accumulation_steps={accumulation}",
                "train.optimizer=sgd",
                model=f"{HERE}:plain_net",
                data={"dataset": f"{HERE}:points", "arguments": {"dtype": "float64"}},
                objective={"loss": "mse"},
            )
        )
        batches = read_batches(setup, 0, 2)
        for step in range(2):
            take_step(setup, step, batches)
        after[batch_size] = [value.detach() for value in setup.parameters]
    for left, right in zip(*after.values(), strict=True):
        assert relative_difference(left, right) <= SAME_SUM


def test_what_a_start_sees_does_not_depend_on_anything_random_but_the_seed(tmp_path: Path) -> None:
    tensors = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        setup = build(recipe(tmp_path, *as_overrides(ADAPTERS["lora-ga"])))
        tensors.append([value.detach().clone() for value in setup.parameters])
    assert all(torch.equal(left, right) for left, right in zip(*tensors, strict=True))


def test_a_head_trained_in_full_is_in_the_file(tmp_path: Path) -> None:
    result = train(recipe(tmp_path / "run", *as_overrides(ADAPTERS["full"])))
    state = lorimer.read(result.adapter)
    assert set(state.layers) == {"0"} and set(state.full) == {"3.weight", "3.bias"}


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"start": "pisa"}, r"adapter: no start is called 'pisa'\. Did you mean 'pissa'"),
        ({"start": "eva", "start_options": {"roh": 2}}, r"adapter: start 'eva' does not take \{'roh': 2\}"),
        ({"start_options": {"rho": 2}}, "adapter: start_options are for the starts eva, corda, lora-ga"),
        ({"method": "adalora", "warmup": 0.9, "settle": 0.9}, "adapter: warmup and settle leave no steps"),
        ({"dropout": 1.5}, "adapter: dropout must be at least 0 and below 1"),
        ({"method": "dora", "direction": "dora"}, "adapter: direction must be an additive low-rank method"),
        ({"shifted": True}, r"adapter\.shifted: unknown key"),
        ({"full": {"0": ["one"]}}, r"adapter\.full"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(
    tmp_path: Path, adapter: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, adapter=adapter)


def test_a_start_that_cannot_see_a_layer_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    values = recipe(
        tmp_path,
        adapter={"start": "corda"},
        data={"dataset": f"{HERE}:blank_points"},
        objective={"loss": "mse"},
    )
    with pytest.raises(RecipeError, match=r"adapter\.start: '0': sees nothing but zeros"):
        build(values)
