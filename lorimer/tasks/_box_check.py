"""Boxes held against the size of their picture, all of them before anything is said.

A box that sticks out by two pixels or fewer is cut to the picture and counted. Any other that does not fit is
named with its file, its place there and the mend.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from lorimer.errors import DataError, listed, suggest
from lorimer.tasks._box_pictures import BoxPicture, Layout, WrittenBox, WrittenPicture, WrittenSet
from lorimer.tasks._picture_decoding import decode, on_white
from lorimer.tasks._picture_duplicates import Likeness, likeness

_SHOWN = 50  # boxes left out that are named
_SLACK = 2.0  # pixels
_ROUNDING = 0.05  # pixels, which six digits of a share leave
_LISTED = 20  # classes whose boxes are counted one by one
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxSet:
    """Pictures whose boxes fit them.

    Attributes:
        likenesses: what each picture is compared by.
        told: lines on what was read, cut and left out.
    """

    pictures: tuple[BoxPicture, ...]
    names: tuple[str, ...]
    likenesses: tuple[Likeness, ...]
    told: tuple[str, ...]


@dataclass(frozen=True)
class _Seen:
    """What a look at a picture's bytes tells; `problem` where there is no picture, `turned` where its EXIF
    data turn it on its side."""

    size: tuple[int, int] = (0, 0)
    turned: bool = False
    digest: bytes = b""
    likeness: Likeness | None = None
    problem: str | None = None


def class_names(written: WrittenSet, asked: Sequence[str]) -> tuple[str, ...]:
    """The classes in order: as asked, as the set has them, or all labels sorted.

    Raises:
        DataError: there is none, which may be since nothing could be read; or one is there twice.
    """
    labels = {box.label for picture in written.pictures for box in picture.boxes}
    names = tuple(asked or written.names or sorted(labels))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or "" in names:
        raise DataError(f"data.classes: every class needs a name of its own; {(twice or [''])[0]!r} is not")
    if not names and written.problems:
        raise DataError(listed("data", written.problems))
    if not names:
        raise DataError("data: no picture has a box, so that there is nothing to learn")
    return names


def checked(written: WrittenSet, names: Sequence[str], leave_out: bool, layout: Layout | None) -> BoxSet:
    """The pictures with their boxes as corners in pixels.

    Args:
        names: the classes, in the order of the labels.
        leave_out: boxes that do not fit are left out and named, instead of raising.
        layout: how four numbers are a box, where the set's own way is not right.

    Raises:
        DataError: names the files and boxes that do not fit, and what is wrong in the set besides.
    """
    if not written.pictures and not written.problems:
        raise DataError("data: there is no picture")
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding lets go of the interpreter's lock
        seen = list(threads.map(_look, written.pictures))
    broken, bad = list(written.problems), []
    pictures, likenesses, cut = [], [], 0
    for picture, found in zip(written.pictures, seen, strict=True):
        if found.problem is not None or found.likeness is None:
            broken.append(found.problem or "")
            continue
        if picture.size is not None and picture.size != found.size:
            broken.append(_other_size(picture, found))
            continue
        fitting = _Fitting(written, layout or written.layout, picture, found.size, tuple(names))
        bad += fitting.problems
        cut += fitting.cut
        boxes = torch.tensor(fitting.boxes, dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor(fitting.labels, dtype=torch.long)
        pictures.append(BoxPicture(picture.name, picture.stored, found.size, found.digest, boxes, labels))
        likenesses.append(found.likeness)
    refused = broken if leave_out else [*broken, *bad]
    if refused:
        hint = "" if broken else "\nor leave such boxes out with data.bad_boxes: leave-out"
        raise DataError(listed("data", refused) + hint)
    return BoxSet(tuple(pictures), tuple(names), tuple(likenesses), _told(written, pictures, names, cut, bad))


def _look(picture: WrittenPicture) -> _Seen:
    try:
        data = picture.stored.read(picture.name)
        decoded = on_white(decode(data, picture.name))
    except DataError as error:
        return _Seen(problem=str(error))
    return _Seen(decoded.size, _is_turned(data), hashlib.sha256(data).digest(), likeness(decoded))


def _is_turned(data: bytes) -> bool:
    """Whether the EXIF data of a picture exchange its sides."""
    from PIL import Image as Images
    from PIL.ExifTags import Base

    with Images.open(io.BytesIO(data)) as opened:
        return opened.getexif().get(Base.Orientation, 1) in range(5, 9)


def _other_size(picture: WrittenPicture, found: _Seen) -> str:
    assert picture.size is not None
    swapped = picture.size == found.size[::-1]
    hint = "draw the boxes on the picture as it is"
    if swapped and found.turned:
        hint = "its EXIF data turn it; save it upright and draw the boxes on that"
    elif swapped:
        hint = "width and height may be exchanged there"
    said, has = ("{} x {}".format(*each) for each in (picture.size, found.size))
    return f"{picture.source}: says {said} pixels, and {picture.name} has {has}: {hint}"


class _Fitting:
    """The boxes of one picture: those that fit, as corners in pixels; and what is wrong with the others."""

    def __init__(
        self,
        written: WrittenSet,
        layout: Layout,
        picture: WrittenPicture,
        size: tuple[int, int],
        names: tuple[str, ...],
    ) -> None:
        self.shares, self.layout, self.size, self.names = written.shares, layout, size, names
        self.boxes: list[Corners] = []
        self.labels: list[int] = []
        self.problems: list[str] = []
        self.cut = 0
        unit = self._wrong_unit(picture.boxes)
        for box in picture.boxes:
            problem = self._unknown(box) or self._not_finite(box) or unit or self._take(box)
            if problem is not None:
                self.problems.append(f"{picture.source}, {box.place}: {_shown(box.values)} {problem}")

    def _unknown(self, box: WrittenBox) -> str | None:
        if box.label in self.names:
            return None
        return (
            f"is of the class {box.label!r}, which is none of the classes.{suggest(box.label, self.names)} "
            "See data.classes"
        )

    def _not_finite(self, box: WrittenBox) -> str | None:
        return None if all(map(math.isfinite, box.values)) else "is not finite; write four numbers"

    def _wrong_unit(self, boxes: Sequence[WrittenBox]) -> str | None:
        """What is wrong where numbers are shares instead of pixels, or pixels instead of shares."""
        values = [abs(value) for box in boxes for value in box.values if math.isfinite(value)]
        width, height = self.size
        if values and not self.shares and max(values) <= 1.0 and any(value % 1 for value in values):
            return f"is in shares of the picture instead of pixels: multiply x by {width} and y by {height}"
        if values and self.shares and max(values) > 2.0:
            return f"is in pixels instead of shares of the picture: divide x by {width} and y by {height}"
        return None

    def _take(self, box: WrittenBox) -> str | None:
        """Take a box in; what is wrong where it does not fit."""
        width, height = self.size
        x0, y0, x1, y1 = _corners(box.values, self.layout)
        if self.shares:
            x0, y0, x1, y1 = x0 * width, y0 * height, x1 * width, y1 * height
        if x1 < x0 or y1 < y0:
            in_order = "write x0, y0, x1, y1 in order" if self.layout == "xyxy" else "a size is negative"
            return f"ends before it begins: {in_order}, or see data.box_format"
        if x1 == x0 or y1 == y0:
            return f"is empty, {x1 - x0:g} x {y1 - y0:g} pixels: draw it anew or remove it"
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            return f"lies outside its picture of {width} x {height} pixels: draw it anew or remove it"
        out = max(-x0, -y0, x1 - width, y1 - height)
        if out > _SLACK:
            corners = "" if self.layout == "xyxy" else "; if these are corners, say data.box_format: xyxy"
            return f"sticks out of its picture of {width} x {height} pixels by {out:.4g}: cut it{corners}"
        self.cut += out > _ROUNDING
        self.boxes.append((max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)))
        self.labels.append(self.names.index(box.label))
        return None


def _corners(values: Sequence[float], layout: Layout) -> Corners:
    first, second, third, fourth = values
    if layout == "xyxy":
        return first, second, third, fourth
    if layout == "xywh":
        return first, second, first + third, second + fourth
    return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2


def _shown(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"


def _some(lines: Sequence[str]) -> list[str]:
    return [*lines[:_SHOWN], *([f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]


def _told(
    written: WrittenSet, pictures: Sequence[BoxPicture], names: Sequence[str], cut: int, bad: Sequence[str]
) -> tuple[str, ...]:
    """Lines for people on what was read."""
    counts = Counter(label for picture in pictures for label in picture.labels.tolist())
    bare = sum(not len(picture.boxes) for picture in pictures)
    classes = f"{len(names)} class{'es' * (len(names) > 1)}"
    lines = [
        f"read as {written.form}: {len(pictures):,} pictures, {sum(counts.values()):,} boxes of {classes}"
        + (f"; {bare:,} without a box" if bare else "")
    ]
    if len(names) <= _LISTED:
        lines.append("boxes: " + ", ".join(f"{name} {counts[place]:,}" for place, name in enumerate(names)))
    lines += written.told
    if cut:
        lines.append(f"{cut} boxes stuck out by at most {_SLACK:g} pixels and were cut to their pictures")
    if bad:
        lines += [
            f"{len(bad)} boxes left out, as data.bad_boxes asks:",
            *(f"  {each}" for each in _some(bad)),
        ]
    return tuple(lines)
