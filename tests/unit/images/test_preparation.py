"""A picture is prepared as the model's own processor does it, unless the recipe says otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, ConvNextImageProcessor, DeiTImageProcessor, ViTImageProcessor

from lorimer.tasks._image_augmentation import Augmentation, augmented, random_box
from lorimer.tasks._image_preparation import Asked, Geometry, Preparation, of_processor, plain
from tests.tiny_images import picture

PROCESSORS = {
    "vit": ViTImageProcessor(size={"height": 32, "width": 32}),
    "deit": DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}),
    "dinov2": BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
}


def wide() -> Image.Image:
    return picture(1, side=64).resize((90, 48))


def own(processor: Any, **options: Any) -> torch.Tensor:
    values: torch.Tensor = processor(images=wide(), return_tensors="pt", **options)["pixel_values"]
    return values[0]


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_processor_decides(name: str) -> None:
    preparation = of_processor(PROCESSORS[name], Asked(), name)
    assert torch.equal(preparation(wide()), own(PROCESSORS[name]))
    assert (preparation.geometry.height, preparation.geometry.width) == (32, 32)


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_recipe_decides_size_fit_and_values(name: str) -> None:
    asked = Asked(24, "stretch", (0.1, 0.2, 0.3), (0.5, 0.5, 0.25))
    seen = of_processor(PROCESSORS[name], asked, name)(wide())
    resample = Image.Resampling(int(PROCESSORS[name].resample))
    values = np.asarray(wide().resize((24, 24), resample), dtype=np.float32).transpose(2, 0, 1) / 255
    wanted = (values - np.array(asked.mean)[:, None, None]) / np.array(asked.std)[:, None, None]
    torch.testing.assert_close(seen, torch.from_numpy(wanted).float(), atol=1e-5, rtol=1e-5)


def test_our_own_cut_is_that_of_the_processors() -> None:
    """The shorter side to 36, the middle 32: as timm and torchvision do, and transformers."""
    processor = BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    ours = plain(Asked(), 32, processor.image_mean, processor.image_std, share=32 / 36)
    for size in ((96, 48), (50, 75), (36, 36)):
        seen = picture(1, side=64).resize(size)
        theirs = processor(images=seen, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(ours(seen), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(50, 20), (20, 50), (3, 400), (400, 3), (1, 1), (33, 33)])
def test_any_picture_comes_to_the_size(fit: Any, size: tuple[int, int]) -> None:
    assert Geometry(24, 32, fit)(Image.new("RGB", size)).size == (32, 24)


def test_padding_is_white_and_keeps_all() -> None:
    seen = np.asarray(Geometry(30, 30, "pad")(Image.new("RGB", (30, 10), "black")))
    assert (seen[:10] == 255).all() and (seen[10:20] == 0).all() and (seen[20:] == 255).all()


def test_what_was_asked_comes_back_from_a_file() -> None:
    for asked in (Asked(), Asked(96, "pad"), Asked(mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.5))):
        assert Asked.read(str(asked)) == asked


def prepared() -> Preparation:
    return plain(Asked(24), mean=(0.0,) * 3, std=(1.0,) * 3)


ALL = Augmentation(flip=True, crop=0.3, colour=0.4, rotation=20)


def test_variations_follow_torchs_generator_alone() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return augmented(wide(), ALL, prepared())

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    assert drawn(0).shape == (3, 24, 24)
    assert not Augmentation().varies and ALL.varies


def test_a_mirrored_picture_is_one_of_two() -> None:
    plainly = prepared()(wide())
    torch.manual_seed(0)
    seen = [augmented(wide(), Augmentation(flip=True), prepared()) for _ in range(40)]
    mirrored = [torch.equal(each, plainly.flip(2)) for each in seen]
    assert all(
        torch.equal(each, plainly) for each, flipped in zip(seen, mirrored, strict=True) if not flipped
    )
    assert 8 < sum(mirrored) < 32


@pytest.mark.parametrize("size", [(90, 48), (48, 90), (500, 3), (3, 500), (64, 64)])
def test_random_parts_lie_within_and_are_as_large_as_asked(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for _ in range(50):
        left, top, right, bottom = random_box(size, 0.3, 1.0)
        assert 0 <= left < right <= size[0] + 1e-6 and 0 <= top < bottom <= size[1] + 1e-6
        ratio = (right - left) / (bottom - top)
        assert 0.75 - 1e-6 <= ratio <= 4 / 3 + 1e-6
        if max(size) < 3 * min(size):
            assert (right - left) * (bottom - top) >= 0.3 * size[0] * size[1] - 1e-6


@pytest.mark.parametrize("size", [(900, 40), (40, 900)])
def test_a_strip_is_cut_before_it_is_enlarged(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows the same as to cut afterwards."""
    strip, cut = picture(3).resize(size), Geometry(24, 24, "crop", 0.9)
    seen = np.asarray(cut(strip), dtype=float)
    monkeypatch.setattr("lorimer.tasks._image_preparation._LONG", 1000)
    assert np.abs(seen - np.asarray(cut(strip), dtype=float)).max() <= 2
    monkeypatch.undo()
    assert Geometry(224, 224)(Image.new("RGB", (1, 60000))).size == (224, 224)


def test_a_processor_that_cuts_nothing_leaves_a_square_of_the_shorter_side() -> None:
    processor = BitImageProcessor(size={"shortest_edge": 24}, do_center_crop=False, resample=0)
    preparation = of_processor(processor, Asked(), "x")
    assert preparation.geometry == Geometry(24, 24, "crop", 1.0, 0)
    assert preparation(wide()).shape == preparation(wide().rotate(90, expand=True)).shape == (3, 24, 24)


def test_parts_of_a_padded_picture_are_parts_of_all_of_it() -> None:
    preparation = plain(Asked(24, "pad"), mean=(0.0,) * 3, std=(1.0,) * 3)
    torch.manual_seed(0)
    seen = augmented(Image.new("RGB", (60, 20)), Augmentation(crop=1.0), preparation)
    wanted = preparation(Image.new("RGB", (60, 20)))
    assert (seen - wanted).abs().mean() < 0.1 and seen[:, 0].min() == 1.0
