"""The composites of benchmarks/quality: boxes fit what is pasted, and tests share nothing with training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.quality import _composites as composites


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Red discs with a clear rim to cut out, and blue photographs."""
    monkeypatch.setattr(composites, "CLASSES", {"disc": "discs/*"})
    monkeypatch.setattr(composites, "_PHOTOGRAPHS", ("photographs/ a b c d",))
    stamps = tmp_path / composites._STAMPS / "discs"
    stamps.mkdir(parents=True)
    (tmp_path / "photographs").mkdir()
    for number, name in enumerate("abcd"):
        disc = Image.new("RGBA", (90, 70))
        ImageDraw.Draw(disc).ellipse((20, 10, 69, 49), fill=(255, 40 * number, 0, 255))
        disc.save(stamps / f"{name}.png")
        Image.new("RGB", (320, 200), (0, 10 * number, 200)).save(tmp_path / "photographs" / f"{name}.png")
    return tmp_path


def test_every_box_is_that_of_the_pixels_pasted(root: Path, tmp_path: Path) -> None:
    told = json.loads(composites.make(tmp_path / "made", root, 6, testing=False, seed=0).read_bytes())
    assert len(told["images"]) == 6
    for image in told["images"]:
        boxes = [each["bbox"] for each in told["annotations"] if each["image_id"] == image["id"]]
        picture = np.asarray(Image.open(tmp_path / "made" / image["file_name"]))
        assert picture.shape[:2] == (image["height"], image["width"])
        red = np.argwhere(picture[..., 0] > 128)
        (top, left), (bottom, right) = red.min(0), red.max(0) + 1
        edges = np.array([[x, y, x + width, y + height] for x, y, width, height in boxes])
        around = [*edges[:, :2].min(0), *edges[:, 2:].max(0)]
        assert np.abs(np.array(around) - [left, top, right, bottom]).max() <= 2  # JPEG blurs the rim


def test_equal_seeds_make_equal_pictures(root: Path, tmp_path: Path) -> None:
    one, other = (composites.make(tmp_path / name, root, 3, testing=True, seed=4) for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_training_and_test_share_no_photograph_and_no_cutout(root: Path) -> None:
    training, test = (set(composites.photographs(root, testing)) for testing in (False, True))
    assert len(training) == len(test) == 2 and not training & test
    cutouts = sorted((root / composites._STAMPS).rglob("*.png"))
    parts = [set(composites._half(cutouts, testing, share=1 / 3)) for testing in (False, True)]
    assert len(parts[0]) == 3 and len(parts[1]) == 1 and not parts[0] & parts[1]
