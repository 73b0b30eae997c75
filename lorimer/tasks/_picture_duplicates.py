"""Pictures that are there twice, or nearly: other sizes, file types, qualities of one picture.

Equal are pictures whose decoded pixels are. Near are those that a perceptual hash of 64 bits and a thumbnail
of 16 x 16 coloured pixels both find alike: the hash sees structure in grey, so that it would take a red ball
for a blue one; the thumbnail sees colour and brightness.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 32  # of the grey picture whose lowest frequencies are hashed
_HASHED = 8
_MAX_BITS = 8  # of 64; unrelated pictures differ in 32 on average
_MAX_COLOUR = 6.0  # mean difference of the thumbnails' values, of 255


@dataclass(frozen=True)
class Likeness:
    """What pictures are compared by.

    Attributes:
        digest: SHA-256 of the upright picture's size and RGB values.
        bits: perceptual hash.
        thumbnail: (16 * 16 * 3,), uint8.
    """

    digest: bytes
    bits: int
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class Duplicate:
    """Places of two alike pictures in what was compared; `exact` where every pixel is equal."""

    first: int
    second: int
    exact: bool


def likeness(picture: Image) -> Likeness:
    """What an upright RGB picture is compared by."""
    digest = hashlib.sha256(str(picture.size).encode())
    digest.update(picture.tobytes())
    thumbnail = np.asarray(picture.resize((16, 16), _area()), dtype=np.uint8).reshape(-1)
    return Likeness(digest.digest(), perceptual_hash(picture), thumbnail)


def perceptual_hash(picture: Image) -> int:
    """64 bits: which of the lowest 8 x 8 frequencies of the grey picture lie above their median.

    Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1. The
    mean brightness is replaced by 0, so that it does not count.
    """
    grey = np.asarray(picture.convert("L").resize((_SIDE, _SIDE), _area()), dtype=np.float64)
    basis = _cosines()
    spectrum = basis @ grey @ basis.T
    spectrum[0, 0] = 0.0
    # Values that are 0 but for rounding, as in pictures with symmetries, must not be bits of chance.
    spectrum[np.abs(spectrum) < 1e-6 * _SIDE * 255] = 0.0
    above = spectrum > np.median(spectrum)
    return int.from_bytes(np.packbits(above.reshape(-1)).tobytes(), "big")


def duplicates(pictures: Sequence[Likeness]) -> list[Duplicate]:
    """For each picture like an earlier one the first such, of those that are no duplicates themselves: a
    thousand equal pictures are not a million pairs, and leaving out every second leaves one of each."""
    found: list[Duplicate] = []
    kept: list[int] = []
    bits = np.zeros(len(pictures), dtype=np.uint64)  # of the kept ones, at the front
    for second, picture in enumerate(pictures):
        near = np.bitwise_count(bits[: len(kept)] ^ np.uint64(picture.bits)) <= _MAX_BITS
        first = next(
            (kept[each] for each in np.flatnonzero(near) if _alike(pictures[kept[each]], picture)), None
        )
        if first is None:
            bits[len(kept)] = picture.bits
            kept.append(second)
        else:
            found.append(Duplicate(first, second, pictures[first].digest == picture.digest))
    return found


class Likenesses:
    """Many pictures to look like ones up in."""

    def __init__(self, pictures: Sequence[Likeness]) -> None:
        self._bits = np.array([picture.bits for picture in pictures], dtype=np.uint64)
        thumbnails = [picture.thumbnail for picture in pictures]
        self._thumbnails = np.stack(thumbnails) if thumbnails else np.zeros((0, 1), np.uint8)

    def like(self, picture: Likeness, before: int | None = None) -> NDArray[np.intp]:
        """Places of the pictures that are like `picture`, of those before a place where one is given."""
        bits = self._bits[:before]
        near = np.flatnonzero(np.bitwise_count(bits ^ np.uint64(picture.bits)) <= _MAX_BITS)
        if not len(near):
            return near
        difference = np.abs(self._thumbnails[near].astype(np.int16) - picture.thumbnail.astype(np.int16))
        return near[difference.mean(1) <= _MAX_COLOUR]


def clusters(pictures: Sequence[Likeness]) -> list[list[int]]:
    """Places of pictures that are alike, be it by way of others between; most stand alone."""
    index = Likenesses(pictures)
    leader = list(range(len(pictures)))

    def led(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for place, picture in enumerate(pictures):
        for other in index.like(picture, before=place).tolist():
            one, two = sorted((led(other), led(place)))
            leader[two] = one
    found: dict[int, list[int]] = {}
    for place in range(len(pictures)):
        found.setdefault(led(place), []).append(place)
    return list(found.values())


def _alike(one: Likeness, other: Likeness) -> bool:
    """Whether the thumbnails of two pictures of like structure are alike."""
    difference = np.abs(one.thumbnail.astype(np.int16) - other.thumbnail.astype(np.int16))
    return float(difference.mean()) <= _MAX_COLOUR


def _cosines() -> NDArray[np.float64]:
    """Rows of the discrete cosine transform for the lowest frequencies, (8, 32)."""
    frequency, place = np.arange(_HASHED)[:, None], np.arange(_SIDE)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE))


def _area() -> int:
    from PIL import Image as Images

    return Images.Resampling.BOX
