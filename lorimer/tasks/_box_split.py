"""Which pictures are held out: never one that is like one to learn from."""

from __future__ import annotations

from collections.abc import Sequence

from lorimer.tasks._box_check import BoxSet
from lorimer.tasks._box_pictures import BoxPicture
from lorimer.tasks._held_out import split
from lorimer.tasks._picture_duplicates import Likenesses, clusters

Pictures = list[BoxPicture]


def hold_out(found: BoxSet, fraction: float, seed: int) -> tuple[Pictures, Pictures, list[str]]:
    """(to learn from, held out, lines on it): a share of a set, where pictures that are alike stay together.

    Raises:
        DataError: nothing would be left to learn from.
    """
    together = clusters(found.likenesses)
    kept, held = split(together, fraction, seed)
    alike = len(found.pictures) - len(together)
    told = [f"{alike} pictures are like others; such stay on one side"] if alike else []
    return _of(found, kept), _of(found, held), told


def without_held_out(found: BoxSet, held: BoxSet) -> tuple[Pictures, list[str]]:
    """(to learn from, lines on it): a set without those pictures that are like held-out ones."""
    index = Likenesses(held.likenesses)
    alike = {place for place, each in enumerate(found.likenesses) if len(index.like(each))}
    kept = [each for place, each in enumerate(found.pictures) if place not in alike]
    told = [f"{len(alike)} pictures are like held-out ones and are not learned from"] if alike else []
    return kept, told


def missing_classes(pictures: Sequence[BoxPicture], names: Sequence[str]) -> list[str]:
    """The classes that no box of these pictures has."""
    there = {label for picture in pictures for label in picture.labels.tolist()}
    return [name for place, name in enumerate(names) if place not in there]


def _of(found: BoxSet, groups: Sequence[Sequence[int]]) -> Pictures:
    return [found.pictures[place] for place in sorted(place for group in groups for place in group)]
