"""What is learned of a picture, in which place of it, and whether it is there twice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lorimer.errors import DataError
from lorimer.tasks._picture_duplicates import duplicates, likeness
from lorimer.tasks._picture_reading import PictureSet, read_pictures
from lorimer.tasks._picture_sections import PictureData
from tests.unit.pictures.conftest import read


def _save(picture: Image.Image, path: Path, text: str = "a thing", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    path.with_suffix(".txt").write_text(text)


def _half(size: tuple[int, int] = (64, 32)) -> Image.Image:
    """Grey: white in its left half."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def _scene(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """Coloured ellipses by chance: as unlike each other as pictures of one kind are."""
    draw = np.random.default_rng(seed)
    picture = Image.new("RGB", (96, 96), tuple(draw.integers(256, size=3).tolist()))
    for _ in range(6):
        corners = [sorted(draw.integers(96, size=2).tolist()) for _ in range(2)]
        box = (corners[0][0], corners[1][0], corners[0][1], corners[1][1])
        ImageDraw.Draw(picture).ellipse(box, fill=tuple(draw.integers(256, size=3).tolist()))
    return picture.resize(size)


@pytest.mark.parametrize("kind", ["alpha", "folder"])
def test_a_mask_is_cut_and_turned_as_its_picture(tmp_path: Path, kind: str) -> None:
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("lime", (0, 0, 32, 32))
    if kind == "alpha":
        picture.putalpha(_half())
        masks: object = "alpha"
    else:
        masks = os.path.relpath(tmp_path / "data" / "masks")
        _half((32, 16)).convert("RGB").save(tmp_path / "half.png")
        (tmp_path / "data" / "masks").mkdir(parents=True)
        (tmp_path / "half.png").rename(tmp_path / "data" / "masks" / "a.png")
    _save(picture, tmp_path / "data" / "a.png")
    for shapes in ("square", "buckets"):
        plain, mirrored = read(tmp_path / "data", 32, masks=masks, flip=True, shapes=shapes)
        assert plain.mask is not None and mirrored.mask is not None
        assert plain.mask.shape == plain.pixels.shape[1:] and plain.mask.dtype == torch.float32
        green = plain.pixels[1] > 200  # what is green is what the mask shows, but at the edge
        assert ((plain.mask > 0.5) == green).float().mean() > 0.95
        assert torch.equal(mirrored.mask, plain.mask.flip(1))
        assert torch.equal(mirrored.pixels, plain.pixels.flip(2))


def test_colours_under_a_mask_are_kept_and_its_background_has_a_weight(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), "red")
    picture.putalpha(Image.new("L", (32, 32), 0))
    _save(picture, tmp_path / "a.png")
    (masked,) = read(tmp_path, 32, masks="alpha", mask_background=0.25)
    assert (masked.pixels == torch.tensor([255, 0, 0]).view(3, 1, 1)).all()
    assert masked.mask is not None and (masked.mask == 0.25).all()
    (whole,) = read(tmp_path, 32)
    assert (whole.pixels == 255).all() and whole.mask is None


def test_pictures_without_alpha_are_learned_whole_and_told(tmp_path: Path) -> None:
    _save(_scene(0), tmp_path / "a.png")
    found = read_pictures(PictureData(path=tmp_path, masks="alpha"), 32)
    assert found.training[0].mask is None
    assert "of these, without an alpha channel, so learned as a whole: 1" in found.notes


def test_wrong_masks_are_told(tmp_path: Path) -> None:
    for name in ("none", "broken", "tall", "fine"):
        _save(_scene(len(name)), tmp_path / "data" / f"{name}.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "broken.png").write_text("x")
    _half((32, 64)).save(tmp_path / "masks" / "tall.png")
    _half((32, 32)).save(tmp_path / "masks" / "fine.png")
    with pytest.raises(DataError, match="3 problems") as caught:
        read(tmp_path / "data", 32, masks=tmp_path / "masks")
    for expected in ("none.png: has no mask", "broken.png: its mask", "tall.png: its mask", "32 x 64 px"):
        assert expected in str(caught.value)


def test_sizes_for_sdxl_are_original_crop_and_target(tmp_path: Path) -> None:
    _save(_scene(0, (100, 64)), tmp_path / "a.png")
    plain, mirrored = read(tmp_path, 32, shapes="square", flip=True)
    assert plain.sizes == (64, 100, 0, 9, 32, 32)  # resized to 50 x 32
    assert mirrored.sizes == (64, 100, 0, 9, 32, 32)
    assert plain.content != mirrored.content and plain.size == (32, 32)


def test_what_a_buckets_crop_leaves_out_is_in_the_table(tmp_path: Path) -> None:
    _save(_scene(0, (64, 64)), tmp_path / "square.png")
    _save(_scene(1, (128, 64)), tmp_path / "2_wide" / "wide.png")
    found = read_pictures(PictureData(path=tmp_path), 32)
    table = [line.split() for line in found.notes if "x" in line.split()]
    assert table == [["40", "x", "24", "1", "2", "17%"], ["32", "x", "32", "1", "1", "0%"]]
    assert len(found.groups) == 3 and len(set(found.groups)) == 2
    for draw, group in zip(found.draws, found.groups, strict=True):
        assert found.training[draw].size == sorted({p.size for p in found.training})[group]


def test_pixels_are_read_when_asked_for_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    _save(_scene(0), tmp_path / "a.png")
    (picture,) = read(tmp_path, 32)
    assert torch.equal(picture.pixels, picture.pixels)
    assert not any(isinstance(value, torch.Tensor) for value in vars(picture).values())
    _scene(1).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: has changed since it was checked"):
        _ = picture.pixels
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        _ = picture.pixels


def test_a_picture_in_another_size_quality_and_file_type_is_nearly_the_same(tmp_path: Path) -> None:
    scenes = [_scene(seed) for seed in range(40)]
    _scene(3).save(tmp_path / "low.jpg", quality=40)
    copies = [_scene(3, (70, 70)), Image.open(tmp_path / "low.jpg"), _scene(3)]
    found = duplicates([likeness(picture.convert("RGB")) for picture in [*scenes, *copies]])
    pairs = {(pair.first, pair.second): pair.exact for pair in found}
    assert pairs[3, 42] and not pairs[3, 40] and not pairs[3, 41]
    assert all({first, second} <= {3, 40, 41, 42} for first, second in pairs)  # unlike ones are apart


def test_the_same_shape_in_another_colour_is_another_picture(balls: Path) -> None:
    assert not any("more than once" in note for note in read_pictures(PictureData(path=balls), 32).notes)


def _names(found: PictureSet) -> tuple[set[str], set[str]]:
    return {p.name for p in found.training}, {p.name for p in found.validation}


def test_duplicates_are_told_or_dropped_and_never_held_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _save(_scene(ord(name)), tmp_path / "data" / f"{name}.png")
    _save(_scene(ord("a")), tmp_path / "data" / "c.png", "another caption")
    _save(_scene(ord("b"), (80, 80)), tmp_path / "held" / "b.png")
    _save(_scene(5), tmp_path / "held" / "new.png")
    data = {"path": tmp_path / "data", "validation": {"path": tmp_path / "held"}}
    found = read_pictures(PictureData.model_validate(data), 32)
    assert _names(found) == ({"data/a.png", "data/b.png", "data/c.png"}, {"held/b.png", "held/new.png"})
    assert "there more than once: data/c.png is data/a.png" in found.notes
    warning = "warning: held out for validation and trained on as well: held/b.png is nearly data/b.png"
    assert warning in found.notes
    dropped = read_pictures(PictureData.model_validate({**data, "duplicates": "drop"}), 32)
    assert _names(dropped) == ({"data/a.png", "data/b.png"}, {"held/new.png"})


def test_one_folder_in_two_sources_is_meant(tmp_path: Path) -> None:
    _save(_scene(0), tmp_path / "a.png")
    sources = [{"path": tmp_path}, {"path": tmp_path, "resolution": 64}]
    data = PictureData.model_validate({"sources": sources, "duplicates": "drop"})
    found = read_pictures(data, 32)
    assert sorted(picture.size for picture in found.training) == [(32, 32), (64, 64)]
    assert not any("more than once" in note for note in found.notes)
