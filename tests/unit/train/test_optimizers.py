"""What holds for every optimiser, for the moving average, and for an adapter kept in bfloat16."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lorimer
from lorimer.errors import Interrupted, MissingDependencyError, RecipeError, TargetError
from lorimer.train.average import decay_at
from lorimer.train.engine import train
from lorimer.train.optimizer import KINDS, state_bytes
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.rounding import stochastic_round
from lorimer.train.sections import TrainSection
from lorimer.train.setup import build
from lorimer.train.step import _sum_over_processes
from tests.tolerances import ROUNDED_MEAN
from tests.unit.train import small
from tests.unit.train.small import HERE, recipe
from tests.unit.train.test_engine import events, learned, nan_at
from tests.unit.train.test_resume import outcome, stop_at

OPTIMIZERS = sorted(KINDS)
WAYS = {
    **{name: (f"train.optimizer={name}",) for name in OPTIMIZERS},
    "adamw, fp16": ("train.mixed_precision=fp16",),
    "lion, fp16": ("train.optimizer=lion", "train.mixed_precision=fp16"),
    "average": ("train.ema=0.9",),
    "bf16 adapter": ("train.adapter_precision=bf16",),
    "bf16 adapter, average, fp16": (
        "train.adapter_precision=bf16", "train.ema=0.9", "train.mixed_precision=fp16",
    ),
    "bf16 adapter, schedule-free": ("train.adapter_precision=bf16", "train.optimizer=schedule-free"),
    "bf16 adapter, adamw-8bit": ("train.adapter_precision=bf16", "train.optimizer=adamw-8bit"),
}  # fmt: skip
# What an optimiser needs to learn the small task in some steps.
RATES = {"prodigy": "1", "sgd": "0.05", "lion": "0.005"}


@pytest.fixture(autouse=True, scope="module")
def packages() -> None:
    """The packages are imported before warnings count: theirs are none of ours."""
    importlib.import_module("bitsandbytes")


def prepared(folder: Path, way: str, *more: str, **sections: Any) -> Recipe:
    data = {
        "dataset": f"{HERE}:restless_points",
        "validation": f"{HERE}:points",
        "validation_arguments": {"count": 5},
    }
    overrides = WAYS[way]
    optimizer = next((each.partition("=")[2] for each in overrides if "optimizer=" in each), "adamw")
    options = ["train.optimizer_options={min_8bit_size: 8}"] if optimizer == "adamw-8bit" else []
    rate = f"train.learning_rate={RATES.get(optimizer, '0.02')}"
    return recipe(folder, "train.steps=7", rate, *options, *overrides, *more, **{"data": data, **sections})


@pytest.mark.parametrize("way", WAYS)
def test_it_learns(tmp_path: Path, way: str) -> None:
    train(prepared(tmp_path / "run", way, "train.steps=60", "train.log_every=15", "train.evaluate_every=60"))
    measured = [event["metrics"]["validation_loss"] for event in events(tmp_path / "run", "evaluation")]
    assert measured[-1] < 0.8 * measured[0]


@pytest.mark.parametrize("way", WAYS)
def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, way: str) -> None:
    train(prepared(tmp_path / "whole" / "style", way, "train.evaluate_every=3"))
    stop_at(tmp_path / "cut" / "style", 2 + 4)
    with pytest.raises(Interrupted):
        train(prepared(tmp_path / "cut" / "style", way, "train.evaluate_every=3"))
    small.hook(None)
    train(load_recipe(tmp_path / "cut" / "style" / "recipe.yaml", (), {}), resume=tmp_path / "cut" / "style")
    expected, again = outcome(tmp_path / "whole" / "style"), outcome(tmp_path / "cut" / "style")
    for name, value in expected.items():
        assert value == again[name], name


@pytest.mark.parametrize("way", WAYS)
def test_steps_that_are_not_finite_change_nothing(tmp_path: Path, way: str) -> None:
    dry = 2
    nan_at(dry + 5, dry + 6)
    spoiled = "tests.unit.train.test_engine:spoiled_loss"
    result = train(prepared(tmp_path / "spoiled", way, "train.steps=6", objective={"loss": spoiled}))
    small.hook(None)
    train(prepared(tmp_path / "short", way, "train.steps=4"))
    assert result.skipped == 2
    short = learned(tmp_path / "short")
    for name, tensor in learned(tmp_path / "spoiled").items():
        assert torch.isfinite(tensor).all() and torch.equal(tensor, short[name]), name


@pytest.mark.parametrize("way", WAYS)
def test_evaluating_changes_no_bit_of_what_is_learned(tmp_path: Path, way: str) -> None:
    train(prepared(tmp_path / "often", way, "train.evaluate_every=2", "train.checkpoint_every=1"))
    train(prepared(tmp_path / "never", way))
    never = learned(tmp_path / "never")
    assert all(torch.equal(tensor, never[name]) for name, tensor in learned(tmp_path / "often").items())


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not KINDS[name].one_rate])
def test_rates_of_a_pattern_are_in_effect(tmp_path: Path, name: str) -> None:
    """A layer that learns at next to no rate stays where it began, and the other does not."""
    pattern = "adapter.learning_rate_pattern={'re:0': 1e-20}"
    train(prepared(tmp_path / "run", name, pattern, "train.fast_ratio=4", "train.steps=2"))
    begun = build(prepared(tmp_path / "begun", name)).named
    for tensor, value in learned(tmp_path / "run").items():
        change = (value - begun[tensor]).abs().max()
        assert (change < 1e-12) if tensor.startswith("0") else (change > 1e-6), tensor


def test_each_parameter_is_in_one_group_with_its_rate(tmp_path: Path) -> None:
    setup = build(
        recipe(tmp_path / "run", "adapter.learning_rate_pattern={'3': 1e-5}", "train.fast_ratio=16")
    )
    groups = setup.optimizer.param_groups
    assert {group["name"]: group["lr"] for group in groups} == {
        "all others": 0.01, "all others, fast": 0.16, "3": 1e-5, "3, fast": 1.6e-4,
    }  # fmt: skip
    owners = {id(each): group["name"] for group in groups for each in group["params"]}
    assert len(owners) == sum(len(group["params"]) for group in groups) == len(setup.parameters)
    for name, parameter in setup.named.items():
        place = "3" if name.startswith("3") else "all others"
        assert owners[id(parameter)] == (f"{place}, fast" if name.endswith("B") else place)


def test_a_pattern_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"unet"):
        build(recipe(tmp_path / "run", "adapter.learning_rate_pattern={unet: 1e-5}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.optimizer_options={beta: 1}"], r"adamw has no option 'beta'. Did you mean 'betas'"),
        (["train.optimizer_options={lr: 1}"], r"no option 'lr'"),
        (["train.optimizer_options={betas: [2, 3]}"], r"adamw refuses them"),
        (["train.optimizer=prodigy", "train.fast_ratio=2"], r"prodigy finds one rate"),
        (["train.optimizer=prodigy", "adapter.learning_rate_pattern={'0': 1}"], r"prodigy finds one rate"),
        (["train.optimizer=schedule-free", "train.schedule=cosine"], r"train\.schedule.*use constant"),
        (["train.optimizer=schedule-free", "train.ema=0.9"], r"train\.ema"),
        (["train.optimizer=schedule-free", "adapter.method=adalora"], r"leaves adalora no gradient"),
        (["train.adapter_precision=bf16", "adapter.method=adalora"], r"adalora measures its tensors in fp32"),
        (["train.adapter_precision=bf16", "adapter.full=biases"], r"adapter\.full"),
    ],
)
def test_what_does_not_go_together_is_explained(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(recipe(tmp_path / "run", *overrides))


def test_prodigy_s_rate_is_one_unless_a_recipe_says() -> None:
    assert TrainSection(optimizer="prodigy").learning_rate == 1
    assert TrainSection.model_validate({"optimizer": "Prodigy", "learning_rate": 0.5}).learning_rate == 0.5
    assert TrainSection(optimizer="lion").learning_rate == 1e-3


def test_spellings_of_other_tools_are_taken(tmp_path: Path) -> None:
    for theirs, ours in (("AdamW8bit", "adamw-8bit"), ("Prodigy", "prodigy"), ("AdamW", "adamw")):
        assert recipe(tmp_path, f"train.optimizer_type={theirs}").train.optimizer == ours


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    with pytest.raises(MissingDependencyError, match=r"lion-pytorch: pip install \"lorimer\[optimizers\]\""):
        build(recipe(tmp_path / "run", "train.optimizer=lion"))


def test_eight_bit_states_are_a_quarter(tmp_path: Path) -> None:
    parameters = [torch.zeros(64, 256), torch.zeros(64, 256)]
    plain = state_bytes(parameters, TrainSection())
    small_ones = state_bytes(parameters, TrainSection(optimizer="adamw-8bit"))
    assert plain == pytest.approx(2 * 2 * 4 * 64 * 256, rel=1e-3)
    assert small_ones < 0.4 * plain


def test_the_logged_rate_of_prodigy_is_the_one_it_found(tmp_path: Path) -> None:
    train(prepared(tmp_path / "run", "prodigy", "train.steps=40"))
    rates = [event["learning_rate"] for event in events(tmp_path / "run", "step")]
    assert rates[-1] > 10 * rates[0] > 0


def test_the_average_follows_its_formula_and_is_what_is_exported(tmp_path: Path) -> None:
    every = [f"train.checkpoint_every={1}", "train.keep_checkpoints=9", "train.steps=5"]
    train(prepared(tmp_path / "run", "average", *every))
    train(prepared(tmp_path / "plain", "adamw", *every))
    setup = build(prepared(tmp_path / "x", "adamw"))
    expected = {name: each.detach().clone() for name, each in setup.named.items()}
    for step in range(5):
        place = tmp_path / "plain" / "checkpoints" / f"step-{step + 1:06d}" / "adapter.safetensors"
        layers = lorimer.read(place).layers
        for name, value in expected.items():
            path, _, tensor = name.rpartition(".")
            value += (1 - min(0.9, (1 + step) / (10 + step))) * (layers[path].tensors[tensor] - value)
    for name, tensor in learned(tmp_path / "run").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(tensor, learned(tmp_path / "plain")[name])


def test_the_average_soon_forgets_its_start() -> None:
    assert decay_at(0, 0.999) == 0.1 and decay_at(10**6, 0.999) == 0.999


def test_rounding_at_random_is_right_on_average_and_never_far() -> None:
    x = torch.tensor([1.0 + 2**-10, -3.3, 1e-30, 0.0, 2.0**-8]).expand(20_000, 5)
    rounded = stochastic_round(x, torch.Generator().manual_seed(0))
    assert rounded.dtype == torch.bfloat16
    error = (rounded.double() - x.double()).abs() / x.double().abs().clamp_min(1e-38)
    assert error.max() < 2**-7  # one of the two neighbours
    mean = rounded.double().mean(0)
    assert ((mean - x[0].double()).abs() <= ROUNDED_MEAN * x[0].double().abs()).all()
    assert (rounded[:, 3:] == x[:, 3:]).all()  # what bfloat16 can hold


def test_rounding_leaves_infinity_and_nan_and_follows_its_generator() -> None:
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan])
    rounded = stochastic_round(odd, torch.Generator().manual_seed(0))
    assert rounded[0] == torch.inf and rounded[1] == -torch.inf and rounded[2].isnan()
    x = torch.randn(100)
    first, again, other = (stochastic_round(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_bf16_adapter_learns_from_steps_below_its_precision(tmp_path: Path) -> None:
    """Steps of 1/1000 of a weight, which rounding to the nearest would lose each time."""
    parameter = torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    from lorimer.train.rounding import WideWeights

    weights = WideWeights([parameter])
    for step in range(100):
        with weights.open() as wide, torch.no_grad():
            wide[0] -= 1e-3
            weights.keep(0, step)
    assert parameter.float().mean().item() == pytest.approx(0.9, abs=0.002)
    assert not weights.wide[0].numel()


def test_a_process_without_a_batch_adds_nothing_to_a_bf16_adapter_s_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the last step of an epoch, which may have fewer batches than there are processes."""
    setup = build(prepared(tmp_path / "run", "bf16 adapter"))
    monkeypatch.setattr(setup.accelerator, "reduce", lambda flat, how: flat + 1)  # what the others have
    total = _sum_over_processes(setup, torch.zeros(()))
    assert total == 1
    assert all(each.grad.dtype == torch.float32 and (each.grad == 1).all() for each in setup.parameters)


def test_a_bf16_adapter_is_kept_and_saved_in_bf16(tmp_path: Path) -> None:
    setup = build(prepared(tmp_path / "run", "bf16 adapter"))
    assert {each.dtype for each in setup.parameters} == {torch.bfloat16}
    train(prepared(tmp_path / "run", "bf16 adapter"))
    assert {tensor.dtype for tensor in learned(tmp_path / "run").values()} == {torch.bfloat16}
    place = tmp_path / "run" / "checkpoints" / "step-000007" / "optimizer.json"
    assert json.loads(place.read_text())
