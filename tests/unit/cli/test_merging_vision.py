"""`lorimer merge` on classifiers of pictures and detectors: the folder is the model with its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lorimer.cli import app
from lorimer.errors import UsageError
from lorimer.formats.safe_io import read_safetensors
from lorimer.models.efficientnet_lite import EfficientNetLite
from lorimer.tasks._detectors import load_detector
from lorimer.tasks._image_classifier import ImageClassifier
from lorimer.tasks._trained_detector import TrainedDetector
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.tiny_detectors import KINDS, save_tiny_detector, shapes
from tests.tiny_images import save_pictures, save_tiny_vit
from tests.tolerances import SAME_NETWORK_OUTPUT
from tests.unit.detection.tiny_nanodet import tiny_nanodet

TRAIN = {"steps": 3, "batch_size": 2, "checkpoint_every": 0, "learning_rate": 0.05}
NEAR: dict[str, Any] = {"atol": 1e-4, "rtol": SAME_NETWORK_OUTPUT}


def trained(folder: Path, task: str, model: object, data: dict[str, Any], **adapter: Any) -> Path:
    """The adapter's file of a run."""
    values = {"task": task, "model": str(model), "data": data, "adapter": {"rank": 2, **adapter}}
    return train(load_recipe({**values, "train": TRAIN, "output": str(folder / "run")}, [], {})).adapter


def merged(folder: Path, *more: object) -> tuple[Path, dict[str, Any]]:
    arguments = ["merge", str(folder / "run"), "--output", str(folder / "merged"), "--json", *map(str, more)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "merged", json.loads(result.output)


@pytest.mark.parametrize("asked", [{}, {"fit": "pad"}, {"mean": [0.1, 0.2, 0.3]}])
def test_a_classifier_of_transformers(asked: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    pictures = save_pictures(tmp_path / "pictures", 3)
    model = save_tiny_vit(tmp_path / "model")
    adapter = trained(tmp_path, "image-classification", model, {"path": str(pictures), **asked})
    folder, told = merged(tmp_path, "--strength", 0.5)
    assert told["merged"] > 0 and any("fit" in note for note in told["notes"]) == ("fit" in asked)
    network = AutoModelForImageClassification.from_pretrained(folder)
    assert network.config.id2label == {0: "blue", 1: "red"}
    assert network.config.problem_type == "single_label_classification"
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    ours = ImageClassifier.load(adapter, str(model), 0.5)
    picture = Image.open(pictures / "red" / "0.png").convert("RGB")  # a square: no fit changes it
    with torch.no_grad():
        shares = network(**processor(picture, return_tensors="pt")).logits.softmax(-1)[0]
    wanted = list(ours.predict([picture])[0]["probabilities"].values())
    torch.testing.assert_close(shares, torch.tensor(wanted), **NEAR)


def test_a_classifier_of_ours_gives_its_state_dict(tmp_path: Path) -> None:
    pictures = save_pictures(tmp_path / "pictures", 3)
    data = {"path": str(pictures), "size": 32}
    adapter = trained(tmp_path, "image-classification", "efficientnet-lite0", data, targets=["head.conv"])
    folder, told = merged(tmp_path)
    assert told["merged"] == 3  # the head's two among them
    assert [each.name for each in folder.iterdir()] == ["model.safetensors"]
    state, facts = read_safetensors(folder / "model.safetensors")
    assert json.loads(facts["labels"]) == ["blue", "red"] and json.loads(facts["preparation"]) == {"size": 32}
    network = EfficientNetLite(2).eval()
    network.load_state_dict(state)
    ours = ImageClassifier.load(adapter, "efficientnet-lite0")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), ours.model(pixels), **NEAR)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_of_transformers(kind: str, keep: bool, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    data = {"path": str(shapes(tmp_path / "shapes", 6, ("blue", "green"))), "keep_classes": keep}
    model = save_tiny_detector(tmp_path / "model", kind)
    ours = TrainedDetector.load(trained(tmp_path, "object-detection", model, data), str(model))
    folder, _ = merged(tmp_path)
    network = AutoModelForObjectDetection.from_pretrained(folder)
    assert tuple(network.config.id2label.values()) == ours.names
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    picture = Image.open(tmp_path / "shapes" / "001.png").convert("RGB")
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(network(pixels).logits, ours.model(pixels).logits, **NEAR)
    again = load_detector(str(folder), ours.names, keep=False)
    assert again.names == ours.names and not any(again.new.values())


def test_a_nanodet(tmp_path: Path) -> None:
    data = {"path": str(shapes(tmp_path / "shapes", 6)), "resolution": 96, "keep_classes": True}
    model = tiny_nanodet(tmp_path / "nanodet")
    ours = TrainedDetector.load(trained(tmp_path, "object-detection", model, data), str(model))
    folder, told = merged(tmp_path)
    assert told["merged"] > 0
    again = load_detector(str(folder), (), keep=False)
    assert again.names == ours.names == ("cat", "dog", "cup", "red", "green")
    picture = Image.open(tmp_path / "shapes" / "001.png").convert("RGB")
    pixels = again.prepare(picture).pixels[None]
    assert pixels.shape[-1] == 96
    with torch.no_grad():
        for one, other in zip(again.network(pixels), ours.model(pixels), strict=True):
            torch.testing.assert_close(one, other, **NEAR)


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    pictures = save_pictures(tmp_path / "pictures", 3)
    trained(tmp_path, "image-classification", save_tiny_vit(tmp_path / "model"), {"path": str(pictures)})
    (tmp_path / "merged").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        merged(tmp_path)
    with pytest.raises(UsageError, match=r"becomes a folder; name it without \.safetensors"):
        merged(tmp_path, "--output", tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
