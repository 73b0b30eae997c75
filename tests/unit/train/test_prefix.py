"""Training with a stored prefix is training; what is stored is bounded; asked for in vain, it says why."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import lorimer
from lorimer.errors import Interrupted, RecipeError
from lorimer.tasks import text_classification
from lorimer.tasks._encoding_cache import make_room
from lorimer.train import control
from lorimer.train.engine import check, train
from lorimer.train.recipe import Recipe, load_recipe
from tests.tiny_texts import save_tiny_encoder

# The last of two layers trains.
LAST = ["layer.1.attention.self.query", "layer.1.output.dense"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lorimer" / "prefix"


def recipe(folder: Path, *overrides: str) -> Recipe:
    if not (folder / "model").exists():
        save_tiny_encoder(folder / "model")
        rows = [
            f"{'good' if number % 2 else 'bad'} {'word ' * (number % 5)},{number % 2}" for number in range(12)
        ]
        (folder / "rows.csv").write_text("\n".join(["text,label", *rows]))
    values: dict[str, Any] = {
        "task": "text-classification",
        "model": str(folder / "model"),
        "data": {"path": str(folder / "rows.csv"), "validation": {"fraction": 0.3}},
        "adapter": {"rank": 2, "targets": LAST},
        "train": {
            "steps": 6, "batch_size": 4, "checkpoint_every": 0, "evaluate_every": 3, "learning_rate": 0.01,
            "base_dropout": False, "cache_prefix": "always",
        },
    }  # fmt: skip
    return load_recipe({**values, "output": str(folder / "run")}, overrides, {})


def trained(folder: Path, output: str, *overrides: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    result = train(recipe(folder, f"output={folder / output}", *overrides))
    state = lorimer.read(result.adapter)
    tensors = {
        f"{path}.{name}": each for path, layer in state.layers.items() for name, each in layer.tensors.items()
    }
    return tensors, result.metrics


def test_the_result_is_the_same(tmp_path: Path, cache: Path) -> None:
    """Up to rounding for texts, which are read in rows of other companions otherwise."""
    plain, wanted = trained(tmp_path, "plain", "train.cache_prefix=never")
    kept, found = trained(tmp_path, "kept")
    for name, tensor in plain.items():
        torch.testing.assert_close(kept[name], tensor, atol=1e-4, rtol=1e-3)
    assert found["accuracy"] == wanted["accuracy"]
    assert found["validation_loss"] == pytest.approx(wanted["validation_loss"], rel=1e-4)
    assert len(list(cache.rglob("*.safetensors"))) == 12 - len(_equal_texts())
    again, _ = trained(tmp_path, "again")
    assert all(torch.equal(again[name], tensor) for name, tensor in kept.items()), (
        "what was kept is used again"
    )


def _equal_texts() -> list[int]:
    """Rows that repeat an earlier text."""
    return [10, 11]


def test_the_frozen_layers_run_once_for_each_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.bert.modeling_bert import BertLayer

    calls: list[int] = []
    real = BertLayer.forward

    def counted(self: Any, hidden: torch.Tensor, *inputs: Any, **named: Any) -> Any:
        calls.append(id(self))
        return real(self, hidden, *inputs, **named)

    monkeypatch.setattr(BertLayer, "forward", counted)
    trained(tmp_path, "kept", "train.steps=40", "train.evaluate_every=0")
    first, last = (calls.count(each) for each in dict.fromkeys(calls))
    assert last >= 40 and first < 40, "10 texts, and what finding the prefix takes"


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_SECONDS_BETWEEN_LOOKS", 0.0)
    whole, _ = trained(tmp_path, "whole")
    stopped = recipe(tmp_path, f"output={tmp_path / 'stopped'}")
    plugin = text_classification.TextClassification
    real, steps = plugin.loss, 0

    def stopping(self: Any, model: Any, batch: Any) -> Any:
        nonlocal steps
        if "states" in batch:
            steps += 1
            if steps == 5:  # the third step, after two measured passes
                (Path(stopped.output) / "control" / "stop").touch()
        return real(self, model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(plugin, "loss", stopping)
        with pytest.raises(Interrupted):
            train(stopped)
    result = train(stopped, resume=Path(stopped.output))
    state = lorimer.read(result.adapter)
    for path, layer in state.layers.items():
        for name, tensor in layer.tensors.items():
            assert torch.equal(tensor, whole[f"{path}.{name}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.base_dropout=true", "set train.base_dropout to false"),
        ("adapter.targets=all-linear", "nothing that multiplies runs before the first layer that trains"),
        ("train.cache_prefix_gigabytes=1e-6", "do not fit into train.cache_prefix_gigabytes"),
    ],
)
def test_asked_for_in_vain_it_says_why(tmp_path: Path, override: str, message: str) -> None:
    asked = recipe(tmp_path, override)
    with pytest.raises(RecipeError, match=rf"train\.cache_prefix: .*{message}"):
        check(asked)
    check(recipe(tmp_path, override, "train.cache_prefix=auto"))


def test_a_short_run_stores_nothing_unasked(tmp_path: Path, cache: Path) -> None:
    assert not any(
        "frozen prefix" in line for line in check(recipe(tmp_path, "train.cache_prefix=auto")).lines()
    )
    assert any("frozen prefix" in line for line in check(recipe(tmp_path)).lines())
    assert not cache.exists(), "checking writes nothing"


def test_room_is_made_of_what_was_not_used_for_long(tmp_path: Path) -> None:
    files = [tmp_path / "encodings" / f"{number}.safetensors" for number in range(3)]
    files[0].parent.mkdir()
    for days, file in zip((3, 2, 0), files, strict=True):
        file.write_bytes(bytes(100))
        os.utime(file, (time.time() - days * 86400 - 10,) * 2)
    assert make_room(tmp_path, 100, 400) and all(file.exists() for file in files)
    assert make_room(tmp_path, 150, 400) and [file.exists() for file in files] == [False, True, True]
    assert not make_room(tmp_path, 350, 400) and files[2].exists(), "a run that goes on keeps its own"
