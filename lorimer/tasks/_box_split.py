"""Which pictures are held out: where a share of them is, never one that is like one to learn from. A split
that somebody made is theirs: pictures of one fixed camera are all alike, and only copies leave it."""

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
    """(to learn from, lines on it): a set without those pictures that are held out, pixel for pixel. Those
    that are like held-out ones are counted."""
    index, copies = Likenesses(held.likenesses), {each.digest for each in held.likenesses}
    pairs = zip(found.pictures, found.likenesses, strict=True)
    kept = [(picture, each) for picture, each in pairs if each.digest not in copies]
    told = []
    if copied := len(found.pictures) - len(kept):
        told.append(f"{copied} pictures are held out as well and are not learned from")
    if alike := sum(len(index.like(each)) > 0 for _, each in kept):
        told.append(f"{alike} pictures to learn from are like held-out ones, which may then be too easy")
    return [picture for picture, _ in kept], told


def missing_classes(pictures: Sequence[BoxPicture], names: Sequence[str]) -> list[str]:
    """The classes that no box of these pictures has."""
    there = {label for picture in pictures for label in picture.labels.tolist()}
    return [name for place, name in enumerate(names) if place not in there]


def _of(found: BoxSet, groups: Sequence[Sequence[int]]) -> Pictures:
    return [found.pictures[place] for place in sorted(place for group in groups for place in group)]
