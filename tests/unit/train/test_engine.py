"""Training runs: what is learned, what is left alone, what is written, and when it must stop."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import lorimer
from lorimer.errors import (
    DataError,
    LorimerError,
    MissingDependencyError,
    RecipeError,
    TargetError,
    UsageError,
)
from lorimer.train.base import fingerprint
from lorimer.train.checkpoint import list_checkpoints
from lorimer.train.engine import check, train
from lorimer.train.preflight import inspect
from lorimer.train.setup import build
from tests.tolerances import SAME_SUM
from tests.unit.train import small
from tests.unit.train.small import HERE, recipe


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if kind in (None, event["event"])]


def learned(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the trained adapter, by layer and name."""
    layers = lorimer.read(folder / "adapter" / "adapter.safetensors").layers
    return {
        f"{path}.{name}": tensor for path, layer in layers.items() for name, tensor in layer.tensors.items()
    }


def test_a_run_learns_and_leaves_the_run_folder_of_the_design(tmp_path: Path) -> None:
    result = train(recipe(tmp_path / "run", "train.steps=40"))
    losses = [event["loss"] for event in events(tmp_path / "run", "step")]
    assert losses[-1] < 0.8 * losses[0]
    assert result.adapter.is_file() and result.steps == 40 and result.skipped == 0
    for name in ("recipe.yaml", "status.json", "events.jsonl", "control", "samples", "adapter/peft"):
        assert (tmp_path / "run" / name).exists(), name
    assert [place.name for place in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000040"]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 40)
    assert status["newest"]["finished"]["base_tensors_unchanged"] == 4


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("own", [0.0, 0.5])
def test_the_bases_dropout_can_be_left_out_and_the_adapters_stays(
    tmp_path: Path, base: bool, own: float
) -> None:
    setup = build(recipe(tmp_path, f"train.base_dropout={base}", f"adapter.dropout={own}"))
    setup.set_training()
    for parameter in setup.parameters:
        nn.init.ones_(parameter)
    batch = setup.task.collate([setup.data[0], setup.data[1]])
    assert setup.model.training
    outputs = {setup.model(batch[0]).sum().item() for _ in range(10)}
    assert (len(outputs) > 1) == (base or own > 0)


def test_the_trained_adapter_loads_onto_the_base_and_changes_it(tmp_path: Path) -> None:
    result = train(recipe(tmp_path / "run"))
    torch.manual_seed(0)
    model, x = small.net().eval(), torch.randn(3, 6)
    before = model(x)
    lorimer.load(model, result.adapter)
    assert not torch.allclose(model(x), before)
    with lorimer.disabled(model):
        assert torch.equal(model(x), before)


def test_training_twice_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    files = [
        train(recipe(tmp_path / name, *more)).adapter
        for name, more in (("a", ()), ("b", ("train.workers=2",)), ("c", ("train.seed=1",)))
    ]
    same, workers, other = (lorimer.read(file) for file in files)
    assert all(
        torch.equal(same.layers[path].tensors["B"], workers.layers[path].tensors["B"]) for path in same.layers
    )
    assert not torch.equal(same.layers["0"].tensors["B"], other.layers["0"].tensors["B"])


def test_the_caller_s_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(recipe(tmp_path / "run"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulation_equals_one_big_batch_with_a_ragged_last_one(tmp_path: Path, optimizer: str) -> None:
    def run(batch: int, accumulation: int) -> tuple[dict[str, torch.Tensor], list[float]]:
        folder = tmp_path / f"{batch}x{accumulation}"
        train(
            recipe(
                folder,
                model=f"{HERE}:plain_net",
                data={"dataset": f"{HERE}:points", "arguments": {"dtype": "float64"}},
                objective={"loss": "mse"},
                train={
                    "steps": 7,
                    "batch_size": batch,
                    "gradient_accumulation_steps": accumulation,
                    "learning_rate": 0.05,
                    "log_every": 3,
                    "optimizer": optimizer,
                },
            )
        )
        return learned(folder), [event["loss"] for event in events(folder, "step")]

    tensors, losses = run(8, 1)
    for batch, accumulation in ((4, 2), (2, 4), (1, 8)):
        again, again_losses = run(batch, accumulation)
        for name, tensor in tensors.items():
            assert (tensor - again[name]).abs().max() <= SAME_SUM * tensor.abs().max(), name
        assert again_losses == pytest.approx(losses, rel=1e-6)


def test_the_logged_loss_is_the_mean_over_examples(tmp_path: Path) -> None:
    """With a rate too small to matter, the mean over one epoch is the loss over all the data."""
    train(
        recipe(
            tmp_path / "run",
            model=f"{HERE}:plain_net",
            data={
                "dataset": f"{HERE}:points",
                "arguments": {"dtype": "float64"},
                "validation": f"{HERE}:points",
                "validation_arguments": {"dtype": "float64"},
            },
            objective={"loss": "mse"},
            train={"steps": 6, "batch_size": 4, "learning_rate": 1e-9, "log_every": 6, "evaluate_every": 6},
        )
    )
    logged = events(tmp_path / "run", "step")[0]["loss"]
    assert logged == pytest.approx(
        events(tmp_path / "run", "evaluation")[0]["metrics"]["validation_loss"], rel=1e-5
    )


class Counting(nn.Module):
    """A base with running statistics, as image networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)
        self.modes: set[bool] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.add(self.norm.training)
        return self.last(self.norm(self.first(x)))


class Drifting(Counting):
    """A base that writes to its own buffer while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x)


class HalfUsed(nn.Module):
    """A base of which one layer takes no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


THIS = __name__


def test_running_statistics_of_the_base_are_left_alone(tmp_path: Path) -> None:
    result = train(recipe(tmp_path / "run", model=f"{THIS}:Counting"))
    assert result.steps == 8


def test_a_base_that_changes_is_an_error_and_nothing_is_exported(tmp_path: Path) -> None:
    with pytest.raises(LorimerError, match="changed the frozen base model: calls"):
        train(recipe(tmp_path / "run", model=f"{THIS}:Drifting"))
    assert not (tmp_path / "run" / "adapter").exists()
    assert events(tmp_path / "run")[-1]["event"] == "failed"


def test_adapter_tensors_that_do_not_move_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        LorimerError, match=r"after 3 steps 2 of 4 tensors.*unused\.A, unused\.B.*adapter\.exclude"
    ):
        train(recipe(tmp_path / "run", model=f"{THIS}:HalfUsed"))
    train(recipe(tmp_path / "other", model=f"{THIS}:HalfUsed", adapter={"rank": 2, "exclude": "unused"}))


def test_the_fingerprint_sees_any_bit() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    before = fingerprint(model)
    lorimer.attach(model, lorimer.LoRA(1))
    assert fingerprint(model) == before
    with torch.no_grad():
        model[1].weight.fill_(2.0)  # all alike, before and after
    assert {name for name, value in fingerprint(model).items() if value != before[name]} == {"1.weight"}


def nan_at(*places: int) -> None:
    """Spoil the input of the given passes."""

    def spoil(number: int) -> None:
        if number in places or not places:
            raise_nan[0] = True

    raise_nan[0] = False
    small.hook(spoil)


raise_nan = [False]


def spoiled_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    raise_nan[0] = False
    loss = small.noisy_loss(model, batch)
    return loss * float("nan") if raise_nan[0] else loss


def test_steps_that_are_not_finite_change_nothing_and_are_counted(tmp_path: Path) -> None:
    dry = 2  # passes before the first step
    nan_at(dry + 5, dry + 6)
    spoiled = train(recipe(tmp_path / "a", "train.steps=6", objective={"loss": f"{THIS}:spoiled_loss"}))
    small.hook(None)
    short = train(recipe(tmp_path / "b", "train.steps=4"))
    assert spoiled.skipped == 2 and short.skipped == 0
    assert all(
        torch.equal(tensor, learned(tmp_path / "b")[name]) for name, tensor in learned(tmp_path / "a").items()
    )
    assert events(tmp_path / "a", "step")[-1]["loss"] is None  # the last two were skipped: nothing to average


def test_ten_bad_steps_in_a_row_end_the_run_with_advice(tmp_path: Path) -> None:
    nan_at(*range(9, 100))
    with pytest.raises(LorimerError, match=r"not finite in the last \d+ steps.*learning_rate.*step-000015"):
        train(
            recipe(
                tmp_path / "run",
                "train.steps=50",
                "train.checkpoint_every=5",
                objective={"loss": f"{THIS}:spoiled_loss"},
            )
        )
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and "not finite" in status["newest"]["failed"]["error"]


class Hopeless(Exception):
    """What a test's own loss raises."""


def failing_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    raise Hopeless


def vector_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]) ** 2


def float_loss(model: nn.Module, batch: Any) -> Any:
    return 0.5


def detached_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return vector_loss(model, batch).mean().detach()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("vector_loss", r"one number, not a tensor of shape \(4, 1\); take its mean"),
        ("float_loss", "one number, not float"),
        ("detached_loss", "nothing that trains takes part in the loss"),
    ],
)
def test_losses_that_cannot_be_are_explained(tmp_path: Path, loss: str, message: str) -> None:
    with pytest.raises(LorimerError, match=message):
        train(recipe(tmp_path / "run", objective={"loss": f"{THIS}:{loss}"}))
    train(recipe(tmp_path / "run"))  # a run that failed before its first step leaves the folder free


def test_a_user_s_own_exception_passes_through(tmp_path: Path) -> None:
    with pytest.raises(Hopeless):
        train(recipe(tmp_path / "run", objective={"loss": f"{THIS}:failing_loss"}))


def test_an_output_folder_in_use_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="--resume"):
        train(recipe(tmp_path, model="no.such:module"))
    with pytest.raises(UsageError, match="not empty"):
        check(recipe(tmp_path))
    with pytest.raises(UsageError, match="is a file"):
        train(recipe(tmp_path / "thesis.txt"))


def test_check_writes_no_folder_and_tells_the_facts(tmp_path: Path) -> None:
    preflight = check(recipe(tmp_path / "run", "train.gradient_accumulation_steps=2"))
    assert not (tmp_path / "run").exists()
    text = "\n".join(preflight.lines())
    assert "2 layers adapted" in text and "21 examples, 8 steps, 2.67 epochs" in text
    assert preflight.as_dict()["memory_bytes"] > 1e6 and preflight.seconds > 0
    assert preflight.warnings == ()
    json.dumps(preflight.as_dict())


def test_warnings_are_facts(tmp_path: Path) -> None:
    preflight = check(
        recipe(tmp_path, "train.batch_size=50", "train.warmup_steps=9", model=f"{THIS}:HalfUsed")
    )
    text = " ".join(preflight.warnings)
    assert "asks for 50 examples and there are 21" in text
    assert "whole run is warm-up" in text
    assert "no gradient reaches unused.A, unused.B" in text


def test_the_dry_run_leaves_weights_optimiser_and_gradients_as_they_are(tmp_path: Path) -> None:
    setup = build(recipe(tmp_path))
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    inspect(setup)
    assert all(torch.equal(tensor, before[name]) for name, tensor in setup.model.state_dict().items())
    assert not setup.optimizer.state and all(parameter.grad is None for parameter in setup.parameters)


def test_evaluation_and_previews_come_before_between_and_at_the_end(tmp_path: Path) -> None:
    result = train(
        recipe(
            tmp_path / "run",
            "train.steps=7",
            "train.evaluate_every=3",
            data={
                "dataset": f"{HERE}:points",
                "validation": f"{HERE}:points",
                "validation_arguments": {"count": 5},
            },
        )
    )
    evaluations = events(tmp_path / "run", "evaluation")
    assert [event["step"] for event in evaluations] == [0, 3, 6, 7]
    losses = {event["step"]: event["metrics"]["validation_loss"] for event in evaluations if event["step"]}
    assert result.best_step == min(losses, key=lambda step: losses[step])
    assert f"step-{result.best_step:06d}" in [
        place.name for place in list_checkpoints(tmp_path / "run" / "checkpoints")
    ]
    assert result.metrics["validation_loss"] == losses[7]


def test_the_best_checkpoint_is_never_pruned_and_nan_is_never_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([9.0, 5.0, float("nan"), 7.0, 8.0, 9.0])
    module_task = type(build(recipe(tmp_path)).task)
    monkeypatch.setattr(module_task, "evaluate", lambda self, model: {"validation_loss": next(losses)})
    result = train(
        recipe(
            tmp_path / "run",
            "train.steps=5",
            "train.evaluate_every=1",
            "train.checkpoint_every=1",
            "train.keep_checkpoints=1",
        )
    )
    assert result.best_step == 1
    names = [place.name for place in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == ["step-000001", "step-000005"]
    assert events(tmp_path / "run", "evaluation")[2]["metrics"] == {"validation_loss": None}


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    train(recipe(tmp_path / "run"), console=Console(file=out, width=40))
    lines = out.getvalue().splitlines()
    assert any(line.startswith("step 2/8  loss ") and "steps/s" in line and "left" in line for line in lines)
    assert lines[-1] == "all 4 tensors of the base model are bit for bit as before"


def test_progress_is_a_bar_on_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    train(recipe(tmp_path / "run"), console=Console(file=out, force_terminal=True, width=100))
    assert "step 8/8" in out.getvalue() and "rate 1.0e-02" in out.getvalue()


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_precisions_train_with_float32_adapters(tmp_path: Path, precision: str) -> None:
    train(recipe(tmp_path / "run", f"train.mixed_precision={precision}"))
    assert {tensor.dtype for tensor in learned(tmp_path / "run").values()} == {torch.float32}


def test_a_precision_that_the_machine_lacks_is_a_recipe_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise ValueError("bf16 mixed precision requires a newer device")

    monkeypatch.setattr("lorimer.train.setup.Accelerator", refuse)
    with pytest.raises(RecipeError, match=r"train\.mixed_precision: bf16 mixed precision requires"):
        train(recipe(tmp_path / "run", "train.mixed_precision=bf16"))


class Parts(nn.Module):
    """A model of two components."""

    components = ("body", "head")

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 5)), nn.Sequential(nn.Linear(5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize(("components", "adapted"), [(None, {"body.0", "head.0"}), (["head"], {"head.0"})])
def test_components_choose_the_parts_that_are_adapted(
    tmp_path: Path, components: Any, adapted: set[str]
) -> None:
    setup = build(recipe(tmp_path, model=f"{THIS}:Parts", adapter={"components": components}))
    assert setup.adapter.layers.keys() == adapted


def test_unknown_components_and_targets_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.components: .*'heed'.*Did you mean 'head'"):
        build(recipe(tmp_path, model=f"{THIS}:Parts", adapter={"components": ["heed"]}))
    with pytest.raises(RecipeError, match="one piece"):
        build(recipe(tmp_path, adapter={"components": ["unet"]}))
    with pytest.raises(TargetError, match="to_q"):
        build(recipe(tmp_path, adapter={"targets": "to_q"}))


def test_rank_patterns_of_the_recipe_reach_the_layers(tmp_path: Path) -> None:
    setup = build(recipe(tmp_path, adapter={"rank": 2, "rank_pattern": {"3": 1}, "alpha_pattern": {"0": 6}}))
    assert {
        path: (layer.method.rank, layer.method.scaled_alpha) for path, layer in setup.adapter.layers.items()
    } == {
        "0": (2, 6.0),
        "3": (1, 1.0),
    }


def test_lora_plus_moves_b_further(tmp_path: Path) -> None:
    def far(ratio: int) -> float:
        train(recipe(tmp_path / str(ratio), f"train.fast_ratio={ratio}", "train.steps=1"))
        return learned(tmp_path / str(ratio))["0.B"].abs().max().item()

    assert far(8) == pytest.approx(8 * far(1), rel=1e-4)


def test_trackers_get_the_log(tmp_path: Path) -> None:
    train(recipe(tmp_path / "run", "train.trackers=tensorboard"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = list((tmp_path / "run").rglob("*tfevents*"))
    scalars = {}
    for file in found:
        accumulator = EventAccumulator(str(file)).Reload()
        scalars |= {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}
    assert [point.step for point in scalars["loss"]] == [2, 4, 6, 8]


def test_trackers_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"no tracker is called 'tensorbord'.*Did you mean 'tensorboard'"):
        train(recipe(tmp_path / "run", "train.trackers=tensorbord"))
    with pytest.raises(RecipeError, match="no tracker"):
        check(recipe(tmp_path / "run", "train.trackers=tensorbord"))
    monkeypatch.setattr("lorimer.train.setup.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "lorimer\[wandb\]"'):
        train(recipe(tmp_path / "run", "train.trackers=wandb"))


def test_no_examples_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no example"):
        train(recipe(tmp_path / "run", data={"dataset": f"{HERE}:points", "arguments": {"count": 0}}))


@pytest.mark.parametrize("there", [True, False])
def test_precisions_that_the_processor_lacks_are_told(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: there)
    for precision in ("bf16", "no"):
        text = " ".join(check(recipe(tmp_path, f"train.mixed_precision={precision}")).warnings)
        assert ("no products in bf16" in text) == (precision == "bf16" and not there)
