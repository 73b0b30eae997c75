"""Pictures with boxes: as their files say it, and as they are once checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lorimer.errors import DataError
from lorimer.tasks._labelled_pictures import Readable

# How four numbers are a box: x0 y0 x1 y1; x0 y0 width height; or centre and size. In pixels or in shares.
Layout = Literal["xyxy", "xywh", "cxcywh"]


@dataclass(frozen=True)
class WrittenBox:
    """A box as a file has it.

    Attributes:
        values: four numbers in the set's layout.
        label: its class.
        place: where in its file it is, such as "line 3".
    """

    values: tuple[float, ...]
    label: str
    place: str


@dataclass(frozen=True)
class WrittenPicture:
    """A picture and its boxes as files have them.

    Attributes:
        name: of the picture, within its folder.
        source: the file that tells its boxes, within the folder.
        size: width and height as that file says them.
    """

    name: str
    stored: Readable
    boxes: tuple[WrittenBox, ...]
    source: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class WrittenSet:
    """All that one reader read.

    Attributes:
        form: what the set is, for people.
        layout, shares: how its numbers are boxes, and whether they are shares of the picture's size.
        names: the classes in the set's own order; None where it has none, which then is the alphabet's.
        told: what was left out and why.
        problems: what is wrong, one line each.
    """

    form: str
    layout: Layout
    pictures: tuple[WrittenPicture, ...]
    names: tuple[str, ...] | None = None
    shares: bool = False
    told: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class BoxPicture:
    """A picture whose boxes fit it.

    Attributes:
        size: width and height in pixels, upright.
        digest: SHA-256 of the file's bytes.
        boxes: (N, 4) x0, y0, x1, y1 in pixels, within the picture.
        labels: (N,) long, places among the class names.
    """

    name: str
    stored: Readable
    size: tuple[int, int]
    digest: bytes
    boxes: Tensor
    labels: Tensor

    def with_labels(self, labels: Tensor) -> BoxPicture:
        """The same picture with other labels."""
        return replace(self, labels=labels)


def within(folder: Path, name: str) -> Path | None:
    """The path of `name` in `folder`, however it parts folders; None where it leads out of it, or is the name
    of no file that could be."""
    path = folder / name.replace("\\", "/")
    try:
        inside = path.resolve().relative_to(folder.resolve())
        path.is_file()
    except (OSError, ValueError):  # it leads out, is too long, or has a zero byte
        return None
    return folder / inside if Path(name).is_absolute() else path


def read_lines(file: Path) -> list[str]:
    """The lines of a text.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text (byte {error.start}); convert it") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def numbers(values: Sequence[Any]) -> tuple[float, ...] | None:
    """Four numbers; None where they are not, true and false among them, or too large for a float."""
    if len(values) != 4 or not all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in values
    ):
        return None
    try:
        return tuple(float(each) for each in values)
    except OverflowError:
        return None
