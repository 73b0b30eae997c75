"""Every task whose examples can be the same in each epoch trains alike with a stored prefix and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lorimer
from lorimer import registry
from lorimer.tasks._base import Task
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.contracts.task_cases import CASES

SAME_EACH_TIME: dict[str, Any] = {
    "text-classification": {},
    "image-classification": {"data": {"augment": {}}, "objective": {}},
    "object-detection": {"data": {"augment": None}},
}


def trained(task: str, folder: Path, wish: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The adapter's tensors, and metrics."""
    values = {"task": task, **CASES[task](folder)}
    for section, changes in SAME_EACH_TIME[task].items():
        values[section] = {**values.get(section, {}), **changes} if changes else {}
    values["adapter"] = {"rank": 2, "targets": _late_layers(values)}
    values["train"] = {
        "steps": 6, "batch_size": 2, "checkpoint_every": 0, "evaluate_every": 6, "learning_rate": 0.01,
        "base_dropout": False, "cache_prefix": wish,
    }  # fmt: skip
    result = train(load_recipe({**values, "output": str(folder / wish)}, [], {}))
    layers = lorimer.read(result.adapter).layers
    tensors = {f"{path}.{name}": each for path, own in layers.items() for name, each in own.tensors.items()}
    return tensors, result.metrics


def _late_layers(values: dict[str, Any]) -> list[str]:
    """The products of the second of two layers."""
    model = registry.get("task", values["task"])(load_recipe({**values, "output": "unused"}, [], {})).model()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(f"{word}.1." in name for word in ("layer", "layers"))
    ]


def test_every_such_task_has_a_case() -> None:
    able = {name for name, task in registry.all_of("task").items() if task.record is not Task.record}
    assert able == SAME_EACH_TIME.keys()


def padded_detr(folder: Path) -> dict[str, Any]:
    """A DETR of which pictures of two shapes are padded to one canvas."""
    from PIL import Image

    from tests.tiny_detectors import save_tiny_detector, shapes

    file = shapes(folder / "shapes", 6) / "coco.json"
    told = json.loads(file.read_text())
    for each in told["images"]:
        each["width"], each["height"] = (64, 40) if each["id"] % 2 else (40, 64)
        path = file.parent / each["file_name"]
        Image.open(path).crop((0, 0, each["width"], each["height"])).save(path)
        first = next(box for box in told["annotations"] if box["image_id"] == each["id"])
        first["bbox"] = [4, 6, 30, 20]
    firsts = {each["image_id"]: each for each in reversed(told["annotations"])}
    told["annotations"] = list(firsts.values())
    file.write_text(json.dumps(told))
    return {
        "model": str(save_tiny_detector(folder / "detr", "detr")),
        "data": {"path": str(file.parent), "validation": {"fraction": 0.4}, "augment": None},
    }


def test_padding_is_known_behind_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(CASES, "object-detection", padded_detr)
    plain, wanted = trained("object-detection", tmp_path, "never")
    stored, found = trained("object-detection", tmp_path, "always")
    assert list((tmp_path / "cache" / "lorimer" / "prefix").rglob("*.safetensors"))
    torch.testing.assert_close(stored, plain, atol=1e-5, rtol=1e-4)
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("task", SAME_EACH_TIME)
def test_stored_is_computed(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit for pictures; for texts, which are read in other rows, up to rounding."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, wanted = trained(task, tmp_path, "never")
    stored, found = trained(task, tmp_path, "always")
    assert list((tmp_path / "cache" / "lorimer" / "prefix").rglob("*.safetensors"))
    exact = task != "text-classification"
    for name, tensor in plain.items():
        torch.testing.assert_close(stored[name], tensor, atol=0 if exact else 1e-4, rtol=0 if exact else 1e-3)
    assert found == (wanted if exact else pytest.approx(wanted, rel=1e-4))
