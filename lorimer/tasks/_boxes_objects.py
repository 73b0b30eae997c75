"""Boxes in the form of Hugging Face's datasets: rows with a picture and `objects: {bbox, category}`.

    metadata.jsonl            {"file_name": "a.jpg", "objects": {"bbox": [[x, y, w, h]], "category": [0]}}
    x.parquet, a hub name     columns `image` and `objects`; categories are ids or names

A dataset on the hub may say what its ids are called; elsewhere `data.classes` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorimer.errors import DataError, MissingDependencyError
from lorimer.tasks._box_pictures import WrittenBox, WrittenPicture, WrittenSet, numbers, within
from lorimer.tasks._labelled_pictures import InRow, Readable
from lorimer.tasks._picture_decoding import Stored
from lorimer.tasks._text_rows import read_rows

_BOXES = ("bbox", "bboxes", "boxes")
_CLASSES = ("category", "categories", "label", "labels", "category_id", "class")


def objects_file(folder: Path, split: str | None) -> Path | None:
    """The metadata or table of a folder."""
    for place in (folder / (split or "train"), folder / "data", folder):
        files = [place / "metadata.jsonl", *sorted(place.glob("*.parquet"))]
        files = [file for file in files if file.is_file()]
        named = [file for file in files if (split or "train") in file.stem]
        if files:
            return (named or files)[0]
    return None


def read_metadata(file: Path, names: Sequence[str]) -> WrittenSet:
    """The pictures that rows in a file name, or hold."""
    rows = read_rows(str(file))
    problems = list(rows.skipped)
    found = []
    for number, row in enumerate(rows.rows, 1):
        source = f"{file.name}, row {number}"
        if isinstance(row.get("image"), dict | bytes):
            found.append(_picture(*_in_row(rows.rows, number - 1), row, source, names, problems))
            continue
        name = str(row.get("file_name") or "")
        path = within(file.parent, name)
        if not name or path is None or not path.is_file():
            problems.append(f"{source}: there is no picture {name!r} in the data folder; see file_name")
        else:
            found.append(_picture(name, Stored(path), row, source, names, problems))
    return WrittenSet(
        "Hugging Face objects", "xywh", tuple(found), tuple(names) or None, problems=tuple(problems)
    )


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
    found = tuple(
        _picture(*_in_row(rows, place), rows[place], f"row {place + 1}", known, problems)
        for place in range(len(rows))
    )
    return WrittenSet("Hugging Face objects", "xywh", found, known or None, problems=tuple(problems))


def _class_names(feature: Any) -> list[str] | None:
    """What a dataset calls its categories, wherever in the feature `objects` that stands."""
    if isinstance(getattr(feature, "names", None), list):
        return list(feature.names)
    inner = feature if isinstance(feature, dict) else getattr(feature, "feature", None)
    if isinstance(inner, dict):
        found = (_class_names(inner[key]) for key in _CLASSES if key in inner)
        return next((each for each in found if each), None)
    return _class_names(inner) if inner is not None else None


def _in_row(rows: Sequence[Any], place: int) -> tuple[str, Readable]:
    """The name of a row's picture, and where its bytes are: in the row, or in a file that it names."""
    image = rows[place].get("image")
    path = image.get("path") if isinstance(image, dict) else None
    name = Path(path).name if isinstance(path, str) and path else f"picture {place + 1}"
    if isinstance(image, dict) and image.get("bytes") is None and isinstance(path, str):
        return name, Stored(Path(path))
    return name, InRow(rows, place, "image")


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
    """Boxes and classes of a mapping of lists, or of a list of mappings."""
    if isinstance(objects, list):
        objects = {key: [each.get(key) for each in objects] for key in (objects[0] if objects else {})}
        if not objects:
            return [], []
    if not isinstance(objects, dict):
        problems.append(f"{source}: needs objects: {{bbox: [...], category: [...]}}")
        return [], []
    boxes = next((objects[key] for key in _BOXES if key in objects), None)
    classes = next((objects[key] for key in _CLASSES if key in objects), None)
    if not isinstance(boxes, list) or not isinstance(classes, list) or len(boxes) != len(classes):
        problems.append(f"{source}: objects needs as many categories as boxes, under bbox and category")
        return [], []
    return boxes, classes
