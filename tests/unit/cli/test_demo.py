"""`lorimer demo` from start to picture, with a tiny model and tiny pictures in the place of its own."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from PIL import Image

from lorimer import attached, read
from lorimer.cli._pictures import load_adapted
from lorimer.errors import Interrupted
from lorimer.train import engine
from lorimer.train.recipe import load_recipe
from tests.tiny_models import save_tiny_pipeline
from tests.unit.cli.running import lorimer

demo = importlib.import_module("lorimer.cli.demo")


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like lorimer/demo_data: pictures with captions, and the recipe, made small."""
    folder = tmp_path_factory.mktemp("demo_data")
    (folder / "openmoji").mkdir()
    for number, colour in enumerate(["red", "green", "blue", "white"]):
        Image.new("RGB", (32, 32), colour).save(folder / "openmoji" / f"{colour}.png")
        (folder / "openmoji" / f"{colour}.txt").write_text(f"square {number}", encoding="utf-8")
    recipe = yaml.safe_load((demo.DEMO_DATA / "demo.yaml").read_text(encoding="utf-8"))
    recipe["model"] = str(save_tiny_pipeline(folder / "model"))
    recipe["data"]["cache"] = str(folder / "cache")
    recipe["adapter"]["exclude"] = []  # the tiny model has no such layers
    recipe["train"] |= {"steps": 3, "batch_size": 2, "warmup_steps": 0, "log_every": 1}
    recipe["preview"] |= {"prompts": ["cat", "key"], "steps": 2}
    (folder / "demo.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def small(demo_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO_DATA", demo_data)


def precisions(file: Path) -> set[torch.dtype]:
    layers = read(file).layers.values()
    return {tensor.dtype for layer in layers for tensor in layer.tensors.values()}


def test_it_trains_draws_and_says_where(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    ran = lorimer("demo", "--output", run)
    assert ran.code == 0, ran.err
    picture, file = run / "before-and-after.png", run / "adapter" / "demo.safetensors"
    with Image.open(picture) as sheet:
        assert sheet.width > 3 * 192 and sheet.height > 2 * 192  # two prompts at three strengths
    assert str(picture) in ran.out and str(file) in ran.out and "Try next" in ran.out
    assert attached(load_adapted(run, None).model)
    assert precisions(file) == {torch.float16}
    assert precisions(run / "adapter" / "adapter.safetensors") == {torch.float32}

    drawn = picture.read_bytes()
    picture.unlink()
    with mock.patch.object(engine, "train", side_effect=AssertionError("trained twice")):
        again = lorimer("demo", "--output", run)
    assert again.code == 0, again.err
    assert picture.read_bytes() == drawn
    assert "done before" in again.out


def test_interrupted_it_goes_on_when_called_again(tmp_path: Path) -> None:
    run = tmp_path / "demo"

    def stopped(*arguments: object, **options: object) -> None:
        (run / "control").mkdir(exist_ok=True, parents=True)
        raise Interrupted("stopped by a person")

    with mock.patch("lorimer.train.engine.export", side_effect=stopped):
        assert lorimer("demo", "--output", run).code == 130
    ran = lorimer("demo", "--output", run)
    assert ran.code == 0, ran.err
    assert "going on with the run" in ran.out and (run / "before-and-after.png").is_file()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    ran = lorimer("demo", "--output", tmp_path)
    assert ran.code == 2 and "not empty" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_real_recipe_is_valid_and_its_prompts_are_not_among_the_pictures() -> None:
    folder = Path(engine.__file__).parents[1] / "demo_data"
    recipe = load_recipe(folder / "demo.yaml", environment={})
    captions = {path.read_text(encoding="utf-8").strip() for path in folder.glob("openmoji/*.txt")}
    assert len(captions) == len(list(folder.glob("openmoji/*.png"))) == 24
    assert len(recipe.preview.prompts) >= 4 and recipe.preview.strengths == (0, 0.5, 1)
    for prompt in recipe.preview.prompts:
        assert not [caption for caption in captions if prompt in caption]
    assert os.path.commonpath([folder, folder / recipe.data.path]) == str(folder)
