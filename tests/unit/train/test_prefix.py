"""Training with a stored prefix is training; what is stored is bounded; asked for in vain, it says why."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import lorimer
from lorimer.errors import Interrupted, RecipeError
from lorimer.tasks import text_classification
from lorimer.tasks._encoding_cache import make_room, room_in
from lorimer.train import control
from lorimer.train.engine import check, train
from lorimer.train.recipe import Recipe, load_recipe
from tests.tiny_images import save_pictures
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
    assert room_in(tmp_path, 400) == 300, "what was used today stays"
    assert room_in(tmp_path, 400, own={"0"}) == 200
    make_room(tmp_path, 100, 400)
    assert all(file.exists() for file in files)
    make_room(tmp_path, 150, 400, own={"0"})
    assert [file.exists() for file in files] == [True, False, True]


def test_what_is_there_needs_no_further_room(tmp_path: Path, cache: Path) -> None:
    trained(tmp_path, "first")
    size = sum(file.stat().st_size for file in cache.rglob("*.safetensors"))
    trained(tmp_path, "second", f"train.cache_prefix_gigabytes={1.1 * size / 1e9}")


def test_another_network_with_the_same_weights_has_its_own(tmp_path: Path, cache: Path) -> None:
    trained(tmp_path, "first")
    before = len(list(cache.rglob("*.safetensors")))
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "relu"}))
    trained(tmp_path, "second")
    assert len(list(cache.rglob("*.safetensors"))) == 2 * before


class Firsts(torch.nn.Module):
    """A module, so that it can be stored."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = torch.nn.Conv2d(3, 4, 8, 8)
        self.norm = torch.nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(pixels)
        if self.way == "company":
            return self.norm(hidden)
        return hidden * 2 if self.training else hidden


def _network(way: str, labels: int) -> torch.nn.Module:
    torch.manual_seed(0)
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return torch.nn.Sequential(Firsts(way), pool, torch.nn.Linear(4, 4), torch.nn.Linear(4, labels))


def by_company(labels: int) -> torch.nn.Module:
    return _network("company", labels)


def by_mode(labels: int) -> torch.nn.Module:
    return _network("mode", labels)


@pytest.mark.parametrize(
    ("network", "message"), [("by_company", "the rest of its batch"), ("by_mode", "in evaluation")]
)
def test_what_is_not_of_the_example_alone_is_not_stored(tmp_path: Path, network: str, message: str) -> None:
    values: dict[str, Any] = {
        "task": "image-classification",
        "model": f"{__name__}:{network}",
        "data": {"path": str(save_pictures(tmp_path / "pictures", 6)), "size": 32},
        "adapter": {"rank": 2, "targets": ["2"]},
        "train": {"steps": 2, "batch_size": 4, "cache_prefix": "always"},
        "output": str(tmp_path / "run"),
    }
    with pytest.raises(RecipeError, match=rf"train\.cache_prefix: .*{message}"):
        check(load_recipe(values, [], {}))
