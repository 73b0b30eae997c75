"""Boxes in YOLO's form: a text file for each picture, a line for each box.

    data.yaml                      names: [cat, dog], train: images/train, val: images/val
    images/train/a.jpg             labels/train/a.txt: `0 0.5 0.5 0.2 0.1`: class, centre and size, in shares
    train/images/a.jpg             train/labels/a.txt, as other programs lay it out
    classes.txt                    one name a line, where there is no data.yaml

An empty text file is of a picture without boxes. A line may be an outline, `0 0.1 0.1 0.5 0.1 0.3 0.4`: the
box around its points counts.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorimer.errors import DataError, suggest
from lorimer.tasks._box_pictures import WrittenBox, WrittenPicture, WrittenSet, read_lines, within
from lorimer.tasks._picture_decoding import Stored
from lorimer.tasks._picture_folder import PICTURE_SUFFIXES

_BOX, _TRIANGLE = 4, 6  # numbers behind the class
_SAME_SPLIT = {"val": ("val", "valid", "validation"), "train": ("train",), "test": ("test",)}


def yolo_config(folder: Path) -> Path | None:
    """The file that names a folder's classes, `data.yaml`, another YAML with `names`, or `classes.txt`."""
    named = folder / "data.yaml"
    if named.is_file() and "names" in _parsed(named):
        return named
    for file in sorted(folder.glob("*.y*ml")):
        with suppress(DataError):  # which need not be of the data
            if file.is_file() and "names" in _parsed(file):
                return file
    for file in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if file.is_file():
            return file
    return None


def read_yolo(config: Path, split: str | None) -> WrittenSet:
    """The pictures of a split, by default `train`, and their boxes.

    Raises:
        DataError: the file names no classes or no such split.
    """
    folder = config.parent.parent if config.parent.name == "labels" else config.parent
    if config.suffix == ".txt":
        names = tuple(line.strip() for line in read_lines(config) if line.strip())
        places = _split_folders(folder, split) or [_whole(folder, split)]
    else:
        told = _parsed(config)
        names = _names(told.get("names"), config)
        places = _split_places(told, config, folder, split or "train")
    problems: list[str] = []
    pictures = [path for place in places for path in _pictures(place, folder, problems)]
    labelled = [(path, _labels_of(path, folder)) for path in pictures]
    missing = sum(not labels.is_file() for _, labels in labelled)
    if pictures and missing == len(pictures):
        where = labelled[0][1].relative_to(folder).as_posix()
        raise DataError(f"{folder}: no picture has a file of labels; the first would be {where}")
    read = [_read(path, labels, folder, names, problems) for path, labels in labelled]
    notes = [f"{missing} pictures without a file of labels are taken to show nothing"] if missing else []
    if outlines := sum(count for _, count in read):
        notes.append(f"{outlines} outlines are learned as the boxes around them")
    pictures_read = tuple(picture for picture, _ in read)
    return WrittenSet(
        "YOLO", "cxcywh", pictures_read, names, shares=True, told=tuple(notes), problems=tuple(problems)
    )


def _parsed(config: Path) -> dict[str, Any]:
    import yaml

    try:
        told = yaml.safe_load("\n".join(read_lines(config)))
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # of a date that is none
        raise DataError(f"{config}: is no YAML: {' '.join(str(error).split())}") from error
    return told if isinstance(told, dict) else {}


def _names(value: Any, config: Path) -> tuple[str, ...]:
    """`[cat, dog]` or `{0: cat, 1: dog}`."""
    if isinstance(value, dict) and set(value) == set(range(len(value))):
        value = [value[place] for place in range(len(value))]
    if not isinstance(value, list) or not value:
        raise DataError(f"{config}: names must list the classes, as in names: [cat, dog]")
    return tuple(str(name).strip() for name in value)


def _split_places(told: dict[str, Any], config: Path, folder: Path, split: str) -> list[Path]:
    """The folders or lists of pictures of a split."""
    same = next((names for names in _SAME_SPLIT.values() if split in names), (split,))
    value = next((told[name] for name in same if told.get(name)), None)
    if value is None:
        if found := _split_folders(folder, split):
            return found
        known = [
            name for name in told if isinstance(told[name], str | list) and name not in ("names", "path")
        ]
        raise DataError(f"{config}: has no split {split!r}.{suggest(split, known)} Known: {', '.join(known)}")
    said = within(folder, str(told.get("path") or "."))
    base = said if said is not None and said.is_dir() else folder
    found = []
    for each in [value] if isinstance(value, str) else value:
        # Some programs write paths as seen from beside the folder.
        name = str(each).removeprefix("../")
        tried = [within(root, name) for root in (base, folder)]
        place = next((path for path in tried if path is not None and path.exists()), None)
        if place is None:
            raise DataError(f"{config}: {split}: there is no {each!r} in the data folder")
        found.append(place)
    return found


def _whole(folder: Path, split: str | None) -> Path:
    """Where all pictures are of a set without splits.

    Raises:
        DataError: one is asked for.
    """
    images = folder / "images"
    if split is not None:
        found = [*images.glob("*/"), *(each.parent for each in folder.glob("*/images/"))]
        known = sorted({each.name for each in found})
        raise DataError(
            f"{folder}: has no split {split!r}: neither images/{split} nor {split}/images."
            f"{suggest(split, known)} Known: {', '.join(known) or 'none'}"
        )
    return images if images.is_dir() else folder


def _split_folders(folder: Path, split: str | None) -> list[Path]:
    """The folders of a split where no file says them."""
    same = next((names for names in _SAME_SPLIT.values() if split in names), (split,) if split else ())
    tried = [
        folder / first / second for name in same for first, second in (("images", name), (name, "images"))
    ]
    return [place for place in tried if place.is_dir()][:1]


def _pictures(place: Path, folder: Path, problems: list[str]) -> list[Path]:
    if place.is_dir():
        return [path for path in sorted(place.rglob("*")) if path.suffix.lower() in PICTURE_SUFFIXES]
    found = []
    for number, line in enumerate(read_lines(place), 1):
        path = within(folder, line.strip())
        if line.strip() and (path is None or not path.is_file()):
            problems.append(
                f"{place.name}, line {number}: there is no picture {line.strip()!r} in the folder"
            )
        elif line.strip() and path is not None:
            found.append(path)
    return found


def _labels_of(picture: Path, folder: Path) -> Path:
    """`labels` in place of the last folder `images`, else beside the picture."""
    parts = list(picture.relative_to(folder).with_suffix(".txt").parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return folder.joinpath(*parts)


def _read(
    picture: Path, labels: Path, folder: Path, names: tuple[str, ...], problems: list[str]
) -> tuple[WrittenPicture, int]:
    """A picture with its boxes, and how many of these are written as outlines."""
    source = labels.relative_to(folder).as_posix()
    boxes: list[WrittenBox] = []
    outlines = 0
    try:
        lines = read_lines(labels) if labels.is_file() else []
    except DataError as error:
        problems.append(str(error))
        lines = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            label, values = _of_line(line, names)
            box = values if len(values) == _BOX else _around(values)
        except ValueError as error:
            problems.append(f"{source}, line {number}: {error}")
            continue
        outlines += len(values) > _BOX
        boxes.append(WrittenBox(box, label, f"line {number}"))
    name = picture.relative_to(folder).as_posix()
    return WrittenPicture(name, Stored(picture), tuple(boxes), source), outlines


def _of_line(line: str, names: tuple[str, ...]) -> tuple[str, tuple[float, ...]]:
    """(class, four numbers of a box, or two of each point of an outline).

    Raises:
        ValueError: says what else stands there.
    """
    first, *others = line.split()
    try:
        place, values = int(first), tuple(map(float, others))
    except ValueError:
        raise ValueError(f"must be a class and four numbers, not {line.strip()[:40]!r}") from None
    if len(values) != _BOX and (len(values) < _TRIANGLE or len(values) % 2):
        known = {_BOX + 1: "a score besides, which a box to learn from has not"}
        what = known.get(len(values), "too short" if len(values) < _BOX else "no outline, which has pairs")
        raise ValueError(f"has {len(values)} numbers behind its class: {what}")
    if not 0 <= place < len(names):
        raise ValueError(f"the class {place} has no name; there are {len(names)}")
    return names[place], values


def _around(outline: tuple[float, ...]) -> tuple[float, ...]:
    """Centre and size of the box around an outline x, y, x, y, ...

    Raises:
        ValueError: a number is not finite, which no comparison would tell.
    """
    if not all(map(math.isfinite, outline)):
        raise ValueError("a point of the outline is not finite")
    left, right, top, bottom = (bound(outline[axis::2]) for axis in (0, 1) for bound in (min, max))
    return ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
