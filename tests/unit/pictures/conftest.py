from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lorimer.tasks._diffusion import DiffusionModel, load_diffusion
from lorimer.tasks._picture_data import Picture
from lorimer.tasks._picture_reading import read_pictures
from lorimer.tasks._picture_sections import PictureData
from lorimer.tasks.text_to_image import TextToImage
from lorimer.train.recipe import load_recipe
from tests.tiny_models import save_tiny_pipeline

COLOURS = ("red", "green", "blue", "yellow", "black", "orange")


@pytest.fixture(scope="session")
def noise_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that predicts noise."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("models") / "noise")


@pytest.fixture(scope="session")
def velocity_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that predicts velocity, with zero terminal SNR."""
    folder = tmp_path_factory.mktemp("models") / "velocity"
    return save_tiny_pipeline(folder, prediction_type="v_prediction", zero_terminal_snr=True)


@pytest.fixture
def model(noise_model: Path) -> DiffusionModel:
    return load_diffusion(str(noise_model))


@pytest.fixture
def balls(tmp_path: Path) -> Path:
    """A folder of six coloured balls with captions."""
    folder = tmp_path / "balls"
    folder.mkdir()
    for colour in COLOURS:
        draw_ball(folder / f"{colour}.png", colour)
        (folder / f"{colour}.txt").write_text(f"a {colour} ball\n", encoding="utf-8")
    return folder


@pytest.fixture
def make_task(tmp_path: Path, noise_model: Path, balls: Path) -> Callable[..., TextToImage]:
    """Builds the task from a recipe with these overrides; its cache is the test's own."""

    def make(*overrides: str) -> TextToImage:
        recipe = {
            "task": "text-to-image",
            "model": str(noise_model),
            "data": {"path": str(balls), "cache": str(tmp_path / "cache")},
            "preview": {"steps": 2},
            "output": str(tmp_path / "run"),
        }
        return TextToImage(load_recipe(recipe, overrides, environment={}))

    return make


def read(path: Path, resolution: int, **data: object) -> tuple[Picture, ...]:
    """The training pictures that a `data:` section with this path names."""
    return read_pictures(PictureData.model_validate({"path": path, **data}), resolution).training


def draw_ball(path: Path, colour: str, size: tuple[int, int] = (48, 40)) -> None:
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((5, 5, 35, 35), fill=colour)
    picture.save(path)
