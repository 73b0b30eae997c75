from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lorimer.tasks._grid import CELL, labelled_grid


def _contains(sheet: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(sheet) == colour).all(-1).any())


def test_every_picture_is_on_the_sheet_and_small_ones_are_enlarged() -> None:
    colours = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 200, 10)]
    first, second, third, fourth = (Image.new("RGB", (64, 64), colour) for colour in colours)
    sheet = labelled_grid([[first, second], [third, fourth]], ["a cat", "a dog"], ["base", "strength 1"])
    assert all(_contains(sheet, colour) for colour in colours)
    assert (np.asarray(sheet) == colours[0]).all(-1).sum() == CELL * CELL
    assert sheet.width > 2 * CELL and sheet.height > 2 * CELL


def test_large_pictures_keep_their_size() -> None:
    sheet = labelled_grid([[Image.new("RGB", (512, 512), (9, 9, 9))]], ["x"], ["base"])
    assert (np.asarray(sheet) == (9, 9, 9)).all(-1).sum() >= 512 * 512


def test_labels_add_ink_and_long_ones_are_wrapped_rather_than_widen_the_sheet() -> None:
    picture = [[Image.new("RGB", (64, 64), "white")]]
    plain, labelled = labelled_grid(picture, [""], [""]), labelled_grid(picture, ["a word " * 30], ["base"])
    assert (np.asarray(labelled) < 128).sum() > (np.asarray(plain) < 128).sum() + 500
    assert labelled.width < 600


@pytest.mark.parametrize("label", ["ein Bär", "猫と犬", "x" * 200, ""])
def test_any_text_is_a_label(label: str) -> None:
    labelled_grid([[Image.new("L", (64, 32))]], [label], [label], title=label)


def test_rows_may_be_short_and_columns_unlabelled() -> None:
    picture = Image.new("RGB", (64, 64))
    assert labelled_grid([[picture, picture], [picture]], ["a", "b"], []).width > 2 * CELL
