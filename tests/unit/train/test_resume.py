"""A run that was stopped and resumed is the run that was not, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lorimer.errors import DataError, FileFormatError, Interrupted, RecipeError, StateError, UsageError
from lorimer.train.checkpoint import newest_checkpoint, read_checkpoint
from lorimer.train.engine import TrainResult, train
from lorimer.train.recipe import Recipe, load_recipe
from tests.unit.train import small
from tests.unit.train.small import HERE, recipe
from tests.unit.train.test_engine import events


def stop_at(folder: Path, number: int) -> None:
    """Ask the run in `folder` to stop during its n-th pass, the two dry ones included."""
    small.hook(lambda passes: (folder / "control" / "stop").touch() if passes == number else None)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without times: files of its last checkpoint, its adapter, its measurements."""
    place = newest_checkpoint(folder / "checkpoints")
    assert place is not None
    names = ("adapter.safetensors", "optimizer.safetensors", "optimizer.json")
    files: dict[str, Any] = {name: (place / name).read_bytes() for name in names}
    trainer = json.loads((place / "trainer.json").read_text())
    files["trainer"] = {key: trainer[key] for key in ("step", "meter", "scaler", "best")}
    files["adapter"] = (folder / "adapter" / "adapter.safetensors").read_bytes()
    files["losses"] = [
        (event["step"], event.get("loss"), event.get("metrics"))
        for event in events(folder)
        if event["event"] in ("step", "evaluation")
    ]
    return files


Whole = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What a run with these overrides leaves when nothing interrupts it; each is trained once."""

    @cache
    def trained(*overrides: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("whole") / "style"
        train(prepared(folder, *overrides))
        return outcome(folder)

    return trained


def resume(folder: Path, *overrides: str) -> TrainResult:
    small.hook(None)
    return train(load_recipe(folder / "recipe.yaml", overrides, {}), resume=folder)


def prepared(folder: Path, *overrides: str) -> Recipe:
    data = {
        "dataset": f"{HERE}:restless_points",
        "validation": f"{HERE}:points",
        "validation_arguments": {"count": 5},
    }
    common = [
        "train.steps=13",
        "train.schedule=cosine",
        "train.warmup_steps=3",
        "train.log_every=3",
        "train.evaluate_every=4",
        "train.fast_ratio=4",
        "train.weight_decay=0.01",
    ]
    return recipe(folder, *common, *overrides, data=data)


# 21 examples in batches of 4: an epoch has six steps, with accumulation of two three.
@pytest.mark.parametrize(
    "stop", [1, 4, 6, 12], ids=["first step", "mid-epoch", "end of epoch", "last but one"]
)
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.gradient_accumulation_steps=2", "train.optimizer=sgd"],
        ["train.mixed_precision=bf16"],
        ["train.mixed_precision=fp16"],
    ],
    ids=["fp32", "accumulation", "bf16", "fp16"],
)
def test_stopped_and_resumed_is_uninterrupted(
    tmp_path: Path, whole: Whole, stop: int, overrides: list[str]
) -> None:
    passes = 2 if overrides and "accumulation" in overrides[0] else 1
    stop_at(tmp_path / "run" / "style", 2 + passes * (stop - 1) + 1)
    with pytest.raises(Interrupted, match=f"after step {stop} of 13.*--resume"):
        train(prepared(tmp_path / "run" / "style", *overrides))
    assert json.loads((tmp_path / "run" / "style" / "status.json").read_text())["state"] == "interrupted"
    resume(tmp_path / "run" / "style")
    expected, again = whole(*overrides), outcome(tmp_path / "run" / "style")
    for name, value in expected.items():
        assert value == again[name], name


@pytest.mark.parametrize("workers", [(2, 0), (0, 2)])
def test_the_number_of_workers_may_change_on_the_way(
    tmp_path: Path, whole: Whole, workers: tuple[int, int]
) -> None:
    stop_at(tmp_path / "run" / "style", 2 + 5)
    with pytest.raises(Interrupted):
        train(prepared(tmp_path / "run" / "style", f"train.workers={workers[0]}"))
    resume(tmp_path / "run" / "style", f"train.workers={workers[1]}")
    assert outcome(tmp_path / "run" / "style") == whole()


class Crash(Exception):
    """Ends a run between its checkpoints."""


def crash_at(number: int) -> None:
    def crash(passes: int) -> None:
        if passes == number:
            raise Crash

    small.hook(crash)


def test_a_crash_goes_back_to_the_newest_checkpoint_and_forgets_what_came_after(
    tmp_path: Path, whole: Whole
) -> None:
    crash_at(2 + 9)
    with pytest.raises(Crash):
        train(prepared(tmp_path / "run" / "style", "train.checkpoint_every=5"))
    assert events(tmp_path / "run" / "style")[-1]["event"] == "failed"
    with (tmp_path / "run" / "style" / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "ti')  # killed while it wrote
    resume(tmp_path / "run" / "style", "train.checkpoint_every=0")
    assert outcome(tmp_path / "run" / "style") == whole()
    assert [event["step"] for event in events(tmp_path / "run" / "style", "resumed")] == [8]


def test_without_a_checkpoint_a_run_begins_anew(tmp_path: Path, whole: Whole) -> None:
    crash_at(2 + 3)
    with pytest.raises(Crash):
        train(prepared(tmp_path / "run" / "style"))
    resume(tmp_path / "run" / "style")
    assert outcome(tmp_path / "run" / "style") == whole()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, whole: Whole) -> None:
    crash_at(2 + 11)
    with pytest.raises(Crash):
        train(prepared(tmp_path / "run" / "style", "train.checkpoint_every=5"))
    damaged = tmp_path / "run" / "style" / "checkpoints" / "step-000010" / "adapter.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    resume(tmp_path / "run" / "style")
    assert [event["step"] for event in events(tmp_path / "run" / "style", "resumed")] == [8]
    assert outcome(tmp_path / "run" / "style") == whole()


def test_a_finished_run_resumed_exports_again(tmp_path: Path) -> None:
    train(prepared(tmp_path / "run" / "style"))
    before = outcome(tmp_path / "run" / "style")
    shutil.rmtree(tmp_path / "run" / "style" / "adapter")
    assert resume(tmp_path / "run" / "style").steps == 13
    assert outcome(tmp_path / "run" / "style") == before


def test_steps_may_grow_where_the_schedule_does_not_depend_on_them(tmp_path: Path) -> None:
    train(recipe(tmp_path / "whole" / "style", "train.steps=12"))
    train(recipe(tmp_path / "run" / "style", "train.steps=7", "train.log_every=4"))
    resume(tmp_path / "run" / "style", "train.steps=12")
    names = ("adapter.safetensors", "optimizer.safetensors")
    for name in names:
        files = [tmp_path / run / "style" / "checkpoints" / "step-000012" / name for run in ("run", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(RecipeError, match=r"train\.steps: was 12, is 9"):
        resume(tmp_path / "run" / "style", "train.steps=9")


def test_a_changed_recipe_names_the_fields(tmp_path: Path) -> None:
    train(prepared(tmp_path / "run" / "style"))
    with pytest.raises(RecipeError) as caught:
        resume(
            tmp_path / "run" / "style",
            "train.learning_rate=0.5",
            "adapter.rank=3",
            "train.steps=20",
            "train.log_every=1",
        )
    text = str(caught.value)
    assert "adapter.rank: was 2, is 3" in text and "train.learning_rate: was 0.01, is 0.5" in text
    assert "train.steps: was 13, is 20" in text  # a cosine schedule depends on it
    assert "log_every" not in text


def test_a_changed_recipe_is_an_error_before_the_first_checkpoint_too(tmp_path: Path) -> None:
    crash_at(2 + 3)
    with pytest.raises(Crash):
        train(prepared(tmp_path / "run" / "style"))
    with pytest.raises(RecipeError, match=r"train\.seed: was 0, is 1"):
        resume(tmp_path / "run" / "style", "train.seed=1")


def test_another_number_of_processes_or_examples_or_another_base_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(tmp_path / "run" / "style"))
    monkeypatch.setattr(small, "restless_points", lambda: small.points(20))
    with pytest.raises(DataError, match="21 examples and now there are 20"):
        resume(tmp_path / "run" / "style")
    monkeypatch.undo()
    base = small.net()
    monkeypatch.setattr(small, "net", lambda: base)
    with pytest.raises(DataError, match="base model's weights are not those"):
        resume(tmp_path / "run" / "style")
    monkeypatch.undo()
    monkeypatch.setattr("accelerate.Accelerator.num_processes", property(lambda self: 2))
    with pytest.raises(UsageError, match="1 processes and now there are 2"):
        resume(tmp_path / "run" / "style")


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        train(recipe(tmp_path / "new"), resume=tmp_path)


def test_a_checkpoint_of_other_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(tmp_path / "run" / "style"))

    def renamed(place: Path) -> Any:
        checkpoint = read_checkpoint(place)
        checkpoint.adapter.layers["1"] = checkpoint.adapter.layers.pop("0")
        return checkpoint

    monkeypatch.setattr("lorimer.train.resume.read_checkpoint", renamed)
    with pytest.raises(FileFormatError, match="other layers"):
        resume(tmp_path / "run" / "style")


def test_the_lock_is_let_go_when_a_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorimer.train import run_folder

    train(recipe(tmp_path / "run" / "style"))
    resume(tmp_path / "run" / "style")

    def taken(file: Any) -> None:
        raise BlockingIOError

    monkeypatch.setattr(run_folder, "_lock", taken)
    with pytest.raises(StateError, match="another process is training"):
        resume(tmp_path / "run" / "style")


def test_lora_plus_groups_keep_their_rates_after_resuming(tmp_path: Path) -> None:
    crash_at(2 + 9)
    with pytest.raises(Crash):
        train(prepared(tmp_path / "run" / "style", "train.checkpoint_every=8"))
    place = newest_checkpoint(tmp_path / "run" / "style" / "checkpoints")
    assert place is not None
    checkpoint = read_checkpoint(place)
    groups = dict(checkpoint.optimizer[1]["items"])["param_groups"]
    rates = [dict(group["items"])["full_rate"] for group in groups]
    assert rates == [0.01, 0.04]
    assert checkpoint.step == 8 and checkpoint.trainer["meter"][1] > 0  # sums of the log in the making
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.optimizer[0].values())
