"""What every task promises the engine. A new task joins by existing, with a case in task_cases.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorimer import registry
from lorimer.errors import Interrupted, RecipeError
from lorimer.tasks._base import Section, Task
from lorimer.train import control
from lorimer.train.checkpoint import newest_checkpoint
from lorimer.train.engine import train
from lorimer.train.order import SeededExamples
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.seeding import seed_all
from lorimer.train.setup import Setup, build
from lorimer.train.step import micro_loss
from tests.contracts.task_cases import CASES, MakeValues

TRAIN = ("train.steps=4", "train.batch_size=2", "train.checkpoint_every=0", "train.log_every=2")


def recipe(task: str, make: MakeValues, folder: Path, *overrides: str) -> Recipe:
    values = {"task": task, "output": str(folder / "style"), **make(folder)}
    return load_recipe(values, [*TRAIN, *overrides], {})


def batch_of(setup: Setup) -> Any:
    data = SeededExamples(setup.data, 0)
    return setup.task.collate([data[0, 0], data[0, 1]])


def seeded_loss(setup: Setup, batch: Any) -> Tensor:
    seed_all(0, "step", 0)
    return micro_loss(setup, batch)


def check_sections_are_strict(task: str, make: MakeValues, folder: Path) -> None:
    plugin = registry.get("task", task)
    assert plugin.name == task and plugin.description
    for name in ("data", "objective", "preview"):
        section = getattr(plugin, name.capitalize())
        assert issubclass(section, Section)
        with pytest.raises(RecipeError, match=f"{name}.no_such_key: unknown key"):
            recipe(task, make, folder, f"{name}.no_such_key=1")


def check_the_base_comes_frozen_able_and_calm(task: str, make: MakeValues, folder: Path) -> None:
    """In evaluation mode, on the CPU, the same twice under a seed."""
    models = []
    for _ in range(2):
        seed_all(0)
        models.append(registry.get("task", task)(recipe(task, make, folder)).model())
    assert not any(module.training for module in models[0].modules())
    first, second = (model.state_dict() for model in models)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def check_data_collates_to_a_finite_loss(task: str, make: MakeValues, folder: Path) -> None:
    setup = build(recipe(task, make, folder))
    assert len(setup.data) >= 2  # type: ignore[arg-type]
    loss = seeded_loss(setup, batch_of(setup))
    assert loss.shape == () and math.isfinite(loss.item())


def check_gradients_reach_the_adapter_alone(task: str, make: MakeValues, folder: Path) -> None:
    setup = build(recipe(task, make, folder))
    setup.set_training()
    for parameter in setup.parameters:
        parameter.data.add_(0.1)  # off the start, where LoRA's A has no gradient
    seeded_loss(setup, batch_of(setup)).backward()
    ours = {id(parameter) for parameter in setup.parameters}
    for name, parameter in setup.model.named_parameters():
        if id(parameter) in ours:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def check_the_loss_follows_the_seed_alone(task: str, make: MakeValues, folder: Path) -> None:
    """All that is random comes from the global generators, so that a step can be taken again."""
    losses = []
    for _ in range(2):
        setup = build(recipe(task, make, folder))
        setup.set_training()
        losses += [seeded_loss(setup, batch_of(setup)).item() for _ in range(2)]
    assert len(set(losses)) == 1


def check_evaluation_is_deterministic_and_changes_nothing(task: str, make: MakeValues, folder: Path) -> None:
    setup = build(recipe(task, make, folder))
    setup.model.eval()
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    found = []
    for _ in range(2):
        seed_all(0, "evaluate")
        with torch.no_grad():
            found.append(setup.task.evaluate(setup.model))
    assert found[0] == found[1] and all(math.isfinite(value) for value in found[0].values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in setup.model.state_dict().items())


def check_previews_are_files_in_their_folder(task: str, make: MakeValues, folder: Path) -> None:
    setup = build(recipe(task, make, folder))
    setup.model.eval()
    samples = folder / "samples"
    samples.mkdir()
    with torch.no_grad():
        files = setup.task.preview(setup.model, samples, 7)
    assert bool(files) == (type(setup.task).preview is not Task.preview)
    assert sorted(files) == sorted(path for path in samples.rglob("*") if path.is_file())
    assert all(path.stat().st_size for path in files)


def check_what_it_says_is_text(task: str, make: MakeValues, folder: Path) -> None:
    setup = build(recipe(task, make, folder))
    assert all(isinstance(line, str) and line for line in setup.task.describe(setup.model, setup.data))
    for key, value in setup.task.metadata().items():
        assert isinstance(key, str) and isinstance(value, str)
        assert str(folder) not in value, f"{key} tells a path of this machine"


def check_resumed_is_uninterrupted(
    task: str, make: MakeValues, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_SECONDS_BETWEEN_LOOKS", 0.0)
    folders = [folder / "whole", folder / "stopped"]
    for each in folders:
        each.mkdir()
    whole, stopped = (recipe(task, make, each, "train.evaluate_every=2") for each in folders)
    train(whole)
    plugin = registry.get("task", task)
    real, passes = plugin.loss, 0

    def stopping(self: Task, model: Any, batch: Any) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == 4:  # the second step, after two dry passes
            (Path(stopped.output) / "control" / "stop").touch()
        return real(self, model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(plugin, "loss", stopping)
        with pytest.raises(Interrupted):
            train(stopped)
    train(stopped, resume=Path(stopped.output))
    for name in ("adapter.safetensors", "optimizer.safetensors"):
        places = [newest_checkpoint(Path(each.output) / "checkpoints") for each in (whole, stopped)]
        files = [(place / name).read_bytes() for place in places if place is not None]
        assert len(files) == 2 and files[0] == files[1], name


CHECKS: list[Callable[[str, MakeValues, Path], None]] = [
    check_sections_are_strict,
    check_the_base_comes_frozen_able_and_calm,
    check_data_collates_to_a_finite_loss,
    check_gradients_reach_the_adapter_alone,
    check_the_loss_follows_the_seed_alone,
    check_evaluation_is_deterministic_and_changes_nothing,
    check_previews_are_files_in_their_folder,
    check_what_it_says_is_text,
]


def test_every_task_has_a_case() -> None:
    assert set(registry.names("task")) <= CASES.keys(), "add a tiny recipe to tests/contracts/task_cases.py"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("task", CASES)
def test_contract(task: str, check: Callable[[str, MakeValues, Path], None], tmp_path: Path) -> None:
    check(task, CASES[task], tmp_path)


@pytest.mark.parametrize("task", CASES)
def test_resumed_is_uninterrupted(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_resumed_is_uninterrupted(task, CASES[task], tmp_path, monkeypatch)
