"""`lorimer check` and `lorimer train` from the command line, on a network of a few weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.unit.cli.running import lorimer

HERE = __name__


def build_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def points() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(16, 3, generator=generator), torch.randn(16, 2, generator=generator))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"task: module\nmodel: {HERE}:build_model\ndata: {{dataset: {HERE}:points}}\n"
        f"train: {{steps: 4, log_every: 1}}\noutput: {tmp_path / 'run'}\n",
        encoding="utf-8",
    )
    return file


def test_check_says_what_would_happen_and_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    ran = lorimer("check", recipe, "train.steps=7")
    assert ran.code == 0 and "7 steps" in ran.out
    facts = json.loads(lorimer("check", recipe, "--json").out)
    assert (facts["steps"], facts["examples"], facts["adapter"]["total"]) == (4, 16, 50)
    assert list(tmp_path.iterdir()) == [recipe]


def test_train_says_where_the_adapter_is(recipe: Path, tmp_path: Path) -> None:
    ran = lorimer("train", recipe, "train.steps=5")
    assert ran.code == 0, ran.err
    file = tmp_path / "run" / "adapter" / "adapter.safetensors"
    assert ran.out == f"adapter: {file}\n" and file.is_file()
    assert "5/5" in ran.err  # progress is for people, so it does not mix with what a program reads


def test_resuming_accepts_changes_that_change_no_result(recipe: Path, tmp_path: Path) -> None:
    assert lorimer("train", recipe).code == 0
    ran = lorimer("train", "--resume", tmp_path / "run", "train.log_every=2")
    assert ran.code == 0, ran.err
    ran = lorimer("train", "--resume", tmp_path / "run", "train.seed=5")
    assert ran.code == 2 and "seed" in ran.err


def test_mistakes_in_a_recipe_are_listed_with_suggestions(recipe: Path) -> None:
    ran = lorimer("check", recipe, "adapter.rnak=4", "train.steps=many")
    assert ran.code == 2
    assert "adapter.rnak" in ran.err and "'rank'" in ran.err and "train.steps" in ran.err


def test_a_trained_file_is_converted_and_inspected(recipe: Path, tmp_path: Path) -> None:
    assert lorimer("train", recipe, "adapter.rank=3").code == 0
    file, folder = tmp_path / "run" / "adapter" / "adapter.safetensors", tmp_path / "as-peft"
    ran = lorimer("convert", file, folder, "--to", "peft", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["format"] == "peft"
    assert (folder / "adapter_config.json").is_file()
    facts = json.loads(lorimer("inspect", folder, "--json").out)
    assert facts["method"] == "lora" and "3" in json.dumps(facts)
    assert "lora" in lorimer("inspect", file).out


def test_an_unknown_format_is_named_with_the_nearest(recipe: Path, tmp_path: Path) -> None:
    assert lorimer("train", recipe).code == 0
    ran = lorimer("convert", tmp_path / "run" / "adapter", tmp_path / "out", "--to", "pefft")
    assert ran.code == 2 and "'peft'" in ran.err


def test_no_pictures_from_a_run_of_another_task(recipe: Path, tmp_path: Path) -> None:
    assert lorimer("train", recipe).code == 0
    ran = lorimer("sample", tmp_path / "run", "--prompt", "a cat")
    assert ran.code == 2 and "task module" in ran.err
