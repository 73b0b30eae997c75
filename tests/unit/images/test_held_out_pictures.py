"""What is held out has its share of every label, and nothing that is trained on too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from lorimer.errors import DataError
from lorimer.tasks._checked_pictures import LabelledPicture
from lorimer.tasks._held_out_pictures import (
    by_folds,
    by_fraction,
    told_clusters,
    told_unlearned,
    without_held_out,
)
from lorimer.tasks._labels import Label, Labels
from lorimer.tasks._picture_decoding import Stored
from lorimer.tasks._picture_duplicates import clusters, likeness
from tests.tiny_images import picture


def labelled(image: Image.Image, label: Label, name: str = "x") -> LabelledPicture:
    return LabelledPicture(name, Stored(None), label, "", likeness(image))  # type: ignore[arg-type]


def many(*counts: int) -> list[LabelledPicture]:
    """So many pictures of each label, none like another."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return [labelled(picture(seed), label, str(seed)) for seed, label in enumerate(labels)]


def together(pictures: Sequence[LabelledPicture]) -> list[list[int]]:
    return clusters([each.likeness for each in pictures])


def counted(pictures: Sequence[LabelledPicture]) -> Counter[Label]:
    return Counter(each.label for each in pictures)


@pytest.mark.parametrize("seed", range(5))
def test_every_label_has_its_share(seed: int) -> None:
    pictures = many(50, 20, 10)
    training, held_out = by_fraction(pictures, together(pictures), 0.2, seed)
    assert counted(held_out) == {0: 10, 1: 4, 2: 2}
    assert sorted(each.name for each in [*training, *held_out]) == sorted(each.name for each in pictures)


def test_the_seed_chooses() -> None:
    pictures = many(20, 20)
    chosen = [
        [each.name for each in by_fraction(pictures, together(pictures), 0.25, s)[1]] for s in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_folds_are_disjoint_and_make_up_the_whole() -> None:
    pictures = many(17, 11, 6)
    held = [by_folds(pictures, together(pictures), 5, fold, 0)[1] for fold in range(5)]
    assert sorted(each.name for fold in held for each in fold) == sorted(each.name for each in pictures)
    for fold in held:
        assert len(fold) in (6, 7) and counted(fold)[0] in (3, 4) and counted(fold)[2] in (1, 2)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_alike_stands_on_one_side(seed: int) -> None:
    """Other sizes, qualities and brightnesses of one picture, be it by way of others between."""
    pictures = many(12, 12)
    for number in range(6):
        copy = picture(number, side=97)
        pictures.append(labelled(copy, 0, f"{number} large"))
        pictures.append(labelled(ImageEnhance.Brightness(copy).enhance(1.03), 0, f"{number} bright"))
    training, held_out = by_fraction(pictures, together(pictures), 0.3, seed)
    assert not {each.name.split()[0] for each in training} & {each.name.split()[0] for each in held_out}
    (line,) = told_clusters(pictures, together(pictures))
    assert "12" in line or ("6 pictures" in line and "nearly: 6" in line)


def test_alike_and_labelled_otherwise_is_warned_of() -> None:
    pictures = [*many(3, 3), labelled(picture(0), 1, "other")]
    lines = told_clusters(pictures, together(pictures))
    assert "there more than once: 1 pictures, nearly: 0, such as 0 = other" in lines[0]
    assert lines[1].startswith("warning: alike, and with different labels: 1, such as 0 = other")
    assert told_clusters(many(3), together(many(3))) == []


def test_what_was_given_to_judge_by_is_not_trained_on() -> None:
    held_out = many(4)
    training = [
        *(labelled(picture(seed), 0, f"t{seed}") for seed in range(50, 60)),
        labelled(picture(2, side=80), 0, "again"),
    ]
    left, told = without_held_out(training, held_out)
    assert [each.name for each in left] == [f"t{seed}" for seed in range(50, 60)]
    assert "1 pictures are held out as well" in told[0] and "again = 2" in told[0]
    with pytest.raises(DataError, match="every picture to learn from"):
        without_held_out(held_out, held_out)


def test_a_thousand_equal_pictures_are_one_cluster() -> None:
    image = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    one = labelled(image, 0)
    assert len(together([one] * 1000)) == 1
    with pytest.raises(DataError, match="would be held out"):
        by_fraction([one] * 10, together([one] * 10), 0.3, 0)


def copies(seed: int, count: int, label: Label) -> list[LabelledPicture]:
    """So many that are all alike."""
    return [labelled(picture(seed), label, f"{seed} {number}") for number in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_every_label_is_learned_whatever_is_alike(seed: int) -> None:
    lumped = [*copies(0, 40, 0), *(labelled(picture(each), 1, str(each)) for each in range(1, 31))]
    training, held_out = by_fraction(lumped, together(lumped), 0.2, seed)
    assert counted(training)[0] == 40 and counted(held_out) in ({1: 6}, {1: 7})
    rare = many(12, 1, 10)
    training, held_out = by_fraction(rare, together(rare), 0.2, seed)
    assert counted(training)[1] == 1 and len(held_out) == 5


def test_folds_have_their_share_of_every_label_beside_a_large_cluster() -> None:
    pictures = [*copies(0, 20, 0), *(labelled(picture(each), 1, str(each)) for each in range(1, 21))]
    for fold in range(5):
        assert counted(by_folds(pictures, together(pictures), 5, fold, 0)[1])[1] == 4


@pytest.mark.parametrize("seed", range(3))
def test_sets_of_labels_that_are_there_once_are_held_out_too(seed: int) -> None:
    pictures = [labelled(picture(each), (each, each + 1)) for each in range(10)]
    assert len(by_fraction(pictures, together(pictures), 0.3, seed)[1]) == 3


def test_labels_that_cannot_be_learned_are_warned_of() -> None:
    labels = Labels("single", ("a", "b", "c"))
    assert told_unlearned(many(2, 1), labels) == ["warning: labels without a picture to learn from: 1 (c)"]
    assert told_unlearned(many(1, 1, 1), labels) == []
    assert told_unlearned([labelled(picture(0), (0, 2))], Labels("multi", ("a", "b", "c")))[0].endswith("(b)")
