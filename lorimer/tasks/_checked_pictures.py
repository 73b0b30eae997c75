"""Looking at every picture before training: whether it is whole, what its label is, which are there twice."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorimer.errors import DataError, listed
from lorimer.tasks._labelled_pictures import Found, FoundPictures, Readable
from lorimer.tasks._labels import Label, Labels, is_missing, told_labels
from lorimer.tasks._picture_decoding import decode, on_white
from lorimer.tasks._picture_duplicates import Likeness, likeness

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class LabelledPicture:
    """A picture that can be read.

    Attributes:
        digest: SHA-256 of its file.
        likeness: what it is compared by.
    """

    name: str
    source: Readable
    label: Label
    digest: str
    likeness: Likeness

    def open(self) -> Image:
        """Upright, in RGB, white where it is transparent."""
        return on_white(decode(self.source.read(self.name), self.name))


def checked(found: FoundPictures, labels: Labels) -> tuple[list[LabelledPicture], list[str]]:
    """The pictures with their labels, and lines that say what was read and what skipped.

    Raises:
        DataError: pictures are broken or missing, all of which are named, or none has a label.
    """
    usable, skipped = [], Counter[str]()
    for picture in found.pictures:
        try:
            if is_missing(picture.label):
                raise ValueError("its label is empty")
            usable.append((picture, labels.of(picture.label)))
        except ValueError as error:
            skipped[str(error)] += 1
    looked = _look_at_all(usable)
    problems = [*found.problems, *(each for each in looked if isinstance(each, str))]
    if problems:
        raise DataError(listed(found.place, problems))
    pictures = [each for each in looked if isinstance(each, LabelledPicture)]
    reasons = "; ".join(f"{count} because {reason}" for reason, count in skipped.most_common(3))
    if not pictures:
        raise DataError(f"{found.place}: no picture can be used: {reasons or 'there is none'}")
    told = (
        f"{found.place}: {len(pictures):,} pictures{told_labels(labels, [each.label for each in pictures])}"
    )
    told += f"; {sum(skipped.values()):,} skipped: {reasons}" if skipped else ""
    return pictures, [told, *(f"{found.place}: {note}" for note in found.notes)]


def _look_at_all(usable: Sequence[tuple[Found, Label]]) -> list[LabelledPicture | str]:
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        from PIL import Image as Images

        warnings.simplefilter("error", Images.DecompressionBombWarning)
        return list(pool.map(lambda each: _look_at(*each), usable))


def _look_at(picture: Found, label: Label) -> LabelledPicture | str:
    """The picture, or what is wrong with it."""
    try:
        data = picture.source.read(picture.name)
        likely = likeness(on_white(decode(data, picture.name)))
    except DataError as error:
        return str(error)
    return LabelledPicture(picture.name, picture.source, label, hashlib.sha256(data).hexdigest(), likely)
