"""Boxes in the form of Hugging Face's datasets: rows with a picture and `objects: {bbox, category}`.

    metadata.jsonl            {"file_name": "a.jpg", "objects": {"bbox": [[x, y, w, h]], "category": [0]}}
    x.parquet, a hub name     columns `image` and `objects`; categories are ids or names; a split may be in
                              several files, such as train-00000-of-00002.parquet

A dataset on the hub may say what its ids are called; elsewhere `data.classes` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorimer.errors import DataError, MissingDependencyError, suggest
from lorimer.tasks._box_pictures import WrittenBox, WrittenPicture, WrittenSet, numbers, within
from lorimer.tasks._labelled_pictures import InRow, Readable
from lorimer.tasks._picture_decoding import Stored
from lorimer.tasks._text_rows import read_rows

_BOXES = ("bbox", "bboxes", "boxes")
_CLASSES = ("category", "categories", "label", "labels", "category_id", "class")


def objects_files(folder: Path, split: str | None) -> list[Path]:
    """The metadata, or else the tables, of a folder, whatever split they are of."""
    for place in (folder / (split or "train"), folder / "data", folder):
        for files in ([place / "metadata.jsonl"], sorted(place.glob("*.parquet"))):
            if found := [file for file in files if file.is_file()]:
                return found
    return []


def choose_objects(folder: Path, files: Sequence[Path], split: str | None) -> list[Path]:
    """The files of a split: all in its folder, or all that are named after it.

    Raises:
        DataError: there is none; or no split is asked for, and there are several without `train`.
    """
    asked = split or "train"
    if files[0].parent == folder / asked:
        return list(files)
    splits = [_SHARD.sub("", file.stem) for file in files]
    if named := [file for file, own in zip(files, splits, strict=True) if own == asked]:
        return named
    known = sorted(set(splits) - {"metadata"})
    if split is None and len(known) < 2:
        return list(files)
    raise DataError(
        f"{folder}: no file is of the split {asked!r}.{suggest(asked, known)} "
        f"Known: {', '.join(known) or 'none, metadata.jsonl is of all'}"
    )


_SHARD = re.compile(r"[-_.]\d+([-_]of[-_]\d+)?([-_.].*)?$")  # what follows a split's name


def read_metadata(files: Sequence[Path], names: Sequence[str]) -> WrittenSet:
    """The pictures that rows in files name, or hold."""
    problems: list[str] = []
    found = [picture for file in files for picture in _of_file(file, names, problems)]
    return WrittenSet(
        "Hugging Face objects", "xywh", tuple(found), tuple(names) or None, problems=tuple(problems)
    )


def _of_file(file: Path, names: Sequence[str], problems: list[str]) -> Iterator[WrittenPicture]:
    rows = read_rows(str(file))
    problems += rows.skipped
    for number, row in enumerate(rows.rows, 1):
        source = f"{file.name}, row {number}"
        if isinstance(row.get("image"), dict | bytes):
            where = _in_row(rows.rows, number - 1, file.parent)
            if where is None:
                problems.append(f"{source}: image holds no picture, nor the path of one in the data folder")
            else:
                yield _picture(*where, row, source, names, problems)
            continue
        name = str(row.get("file_name") or "")
        path = within(file.parent, name)
        if not name or path is None or not path.is_file():
            problems.append(f"{source}: there is no picture {name[:80]!r} in the data folder; see file_name")
        else:
            yield _picture(name, Stored(path), row, source, names, problems)


def read_hub(name: str, split: str, subset: str | None, names: Sequence[str]) -> WrittenSet:
    """The pictures of a dataset on the hub.

    Raises:
        DataError: there is none of that name. MissingDependencyError: `datasets` is not installed.
    """
    try:
        from datasets import Image, load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            f'data: {name}: datasets of the hub need the package datasets: pip install "lorimer[text]"'
        ) from error
    try:
        rows = load_dataset(name, subset, split=split)
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"data: there is no file or folder {name}, and the hub gives: {first}") from error
    features = rows.features
    if "image" not in features or "objects" not in features:
        raise DataError(f"data: {name} needs the columns image and objects, and has {', '.join(features)}")
    rows = rows.cast_column("image", Image(decode=False))
    known = tuple(names) or tuple(_class_names(features["objects"]) or ())
    problems: list[str] = []
    found = []
    for place in range(len(rows)):
        source, where = f"row {place + 1}", _in_row(rows, place, None)
        if where is None:
            problems.append(f"{source}: image holds no picture")
        else:
            found.append(_picture(*where, rows[place], source, known, problems))
    return WrittenSet("Hugging Face objects", "xywh", tuple(found), known or None, problems=tuple(problems))


def _class_names(feature: Any) -> list[str] | None:
    """What a dataset calls its categories, wherever in the feature `objects` that stands."""
    if isinstance(getattr(feature, "names", None), list):
        return list(feature.names)
    inner = feature if isinstance(feature, dict) else getattr(feature, "feature", None)
    if isinstance(inner, dict):
        found = (_class_names(inner[key]) for key in _CLASSES if key in inner)
        return next((each for each in found if each), None)
    return _class_names(inner) if inner is not None else None


def _in_row(rows: Sequence[Any], place: int, folder: Path | None) -> tuple[str, Readable] | None:
    """The name of a row's picture, and where its bytes are: in the row, or in a file that it names; None
    where there is none.

    Args:
        folder: out of which no name may lead; None for the hub's own cache.
    """
    image = rows[place].get("image")
    path = image.get("path") if isinstance(image, dict) else None
    name = Path(path).name if isinstance(path, str) and path else f"picture {place + 1}"
    if isinstance(image, bytes) or (isinstance(image, dict) and isinstance(image.get("bytes"), bytes)):
        return name, InRow(rows, place, "image")
    if not isinstance(path, str) or not path:
        return None
    file = Path(path) if folder is None else within(folder, path)
    return None if file is None or not file.is_file() else (name, Stored(file))


def _picture(
    name: str,
    stored: Readable,
    row: Mapping[str, Any],
    source: str,
    names: Sequence[str],
    problems: list[str],
) -> WrittenPicture:
    boxes, classes = _pairs(row.get("objects"), source, problems)
    found = []
    for number, (box, label) in enumerate(zip(boxes, classes, strict=True), 1):
        values = numbers(list(box)) if isinstance(box, list | tuple) else None
        if values is None:
            problems.append(f"{source}, box {number}: must be four numbers: x, y, width, height")
        elif isinstance(label, int) and names and not 0 <= label < len(names):
            problems.append(f"{source}, box {number}: the category {label} has no name in data.classes")
        else:
            called = names[label] if isinstance(label, int) and names else str(label)
            found.append(WrittenBox(values, called, f"box {number}"))
    size = (row.get("width"), row.get("height"))
    said = (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None
    return WrittenPicture(name, stored, tuple(found), source, said)


def _pairs(objects: Any, source: str, problems: list[str]) -> tuple[list[Any], list[Any]]:
    """Boxes and classes of a mapping of lists, or of a list of mappings; none where there is nothing."""
    if not objects and (objects is None or isinstance(objects, list)):
        return [], []
    if isinstance(objects, list) and all(isinstance(each, dict) for each in objects):
        objects = {key: [each.get(key) for each in objects] for key in objects[0]}
    if not isinstance(objects, dict):
        problems.append(f"{source}: needs objects: {{bbox: [...], category: [...]}}")
        return [], []
    boxes = next((objects[key] for key in _BOXES if key in objects), None)
    classes = next((objects[key] for key in _CLASSES if key in objects), None)
    if not isinstance(boxes, list) or not isinstance(classes, list) or len(boxes) != len(classes):
        problems.append(f"{source}: objects needs as many categories as boxes, under bbox and category")
        return [], []
    return boxes, classes
