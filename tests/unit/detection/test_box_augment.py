"""Boxes follow what is painted in them, whatever is done to the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lorimer.tasks._box_augment import Augment, Boxed, augmented, mirrored, upside_down, zoomed

RED = (255, 0, 0)


def painted(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Boxed:
    picture = Image.new("RGB", size, (10, 90, 160))
    for box in boxes:
        picture.paste(RED, box)
    return Boxed(picture, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(len(boxes)))


def seen(picture: Image.Image) -> list[float]:
    """The box around what is red."""
    values = np.asarray(picture).astype(int)
    ys, xs = np.nonzero(values[..., 0] - values[..., 2] > 100)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("size", [(61, 40), (40, 61), (64, 64)])
def test_boxes_follow_pixels_exactly(size: tuple[int, int]) -> None:
    one = painted(size, (7, 11, 23, 30))
    assert mirrored(one).boxes[0].tolist() == seen(mirrored(one).picture)
    assert upside_down(one).boxes[0].tolist() == seen(upside_down(one).picture)
    for factor in (0.5, 0.83, 1.0, 1.2):
        for across, down in ((0.0, 0.0), (1.0, 1.0), (0.3, 0.8)):
            changed = zoomed(one, factor, across, down, 0.01)
            if len(changed.boxes):
                assert changed.boxes[0].tolist() == seen(changed.picture)


def test_mirroring_twice_changes_nothing() -> None:
    one = painted((50, 40), (3, 5, 20, 30), (30, 2, 49, 39))
    for change in (mirrored, upside_down):
        twice = change(change(one))
        assert twice.picture.tobytes() == one.picture.tobytes() and twice.boxes.equal(one.boxes)


def test_boxes_of_which_too_little_is_left_are_dropped() -> None:
    one = painted((100, 100), (0, 0, 20, 20), (40, 40, 60, 60))
    changed = zoomed(one, 100 / 88, 1.0, 1.0, 0.4)  # cuts 12 pixels on the left and top: 64 of 400 are left
    assert changed.labels.tolist() == [1] and changed.boxes.tolist() == [[28, 28, 48, 48]]
    changed = zoomed(one, 100 / 88, 1.0, 1.0, 0.1)
    assert changed.boxes.tolist() == [[0, 0, 8, 8], [28, 28, 48, 48]]


@pytest.mark.parametrize("seed", range(20))
def test_all_together_follow_and_repeat(seed: int) -> None:
    how = Augment(flip=0.5, vertical_flip=0.5, zoom=0.5, visible=0.01, colour=0.3, mosaic=0.0)
    results = []
    for _ in range(2):
        torch.manual_seed(seed)
        results.append(augmented(painted((90, 60), (30, 20, 55, 41)), how, lambda: painted((9, 9))))
    first, second = results
    assert first.picture.tobytes() == second.picture.tobytes() and first.boxes.equal(second.boxes)
    assert first.boxes[0].tolist() == seen(first.picture)


@pytest.mark.parametrize("seed", range(10))
def test_a_mosaic_shows_four_pictures_with_their_boxes(seed: int) -> None:
    torch.manual_seed(seed)
    how = Augment(flip=0.0, zoom=0.0, colour=0.0, mosaic=1.0, visible=0.01)
    shown = augmented(painted((120, 90), (60, 40, 90, 70)), how, lambda: painted((50, 80)))
    assert shown.picture.size == (120, 90) and len(shown.boxes) == 1
    assert shown.boxes[0].tolist() == pytest.approx(seen(shown.picture), abs=1.01)  # it was scaled
    whole = augmented(painted((60, 60), (0, 0, 60, 60)), how, lambda: painted((60, 60), (0, 0, 60, 60)))
    assert len(whole.boxes) == 4


def test_nothing_asked_is_nothing_done() -> None:
    how = Augment(flip=0.0, zoom=0.0, colour=0.0)
    one = painted((30, 20), (3, 4, 9, 9))
    assert augmented(one, how, lambda: one) == one
