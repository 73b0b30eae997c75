"""Boxes in COCO's form: a JSON file with `images`, `annotations` and `categories`, and a folder of pictures.

Boxes are x, y, width, height in pixels. Annotations of crowds are left out: they mark where many things are
that nobody told apart.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorimer.errors import DataError, suggest
from lorimer.tasks._box_pictures import WrittenBox, WrittenPicture, WrittenSet, numbers, within
from lorimer.tasks._picture_decoding import Stored

_PARTS = ("images", "annotations", "categories")
_HEAD = 4096  # bytes in which one of the parts is named


def coco_files(folder: Path) -> list[Path]:
    """The JSON files in a folder, or one level below, that look like COCO's."""
    files = [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))]
    return [file for file in files if file.is_file() and _looks_like_coco(file)]


def _looks_like_coco(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    return any(f'"{part}"'.encode() in head for part in (*_PARTS, "info", "licenses"))


def choose_coco(folder: Path, files: list[Path], split: str | None) -> Path:
    """The file of a split: one that has the split's name in its own or its folder's.

    Raises:
        DataError: none has, or several have.
    """
    asked = split or "train"
    named = [file for file in files if _is_of(file, folder, asked)]
    fitting = files if len(files) == 1 and split is None else named
    if len(fitting) == 1:
        return fitting[0]
    names = [file.relative_to(folder).as_posix() for file in files]
    if fitting:
        shown = ", ".join(file.relative_to(folder).as_posix() for file in fitting)
        raise DataError(f"{folder}: several files are of the split {asked!r}: {shown}. Give one as the path")
    known = ", ".join(names)
    raise DataError(
        f"{folder}: no COCO file is of the split {asked!r}.{suggest(asked, names)} Known: {known}"
    )


def _is_of(file: Path, folder: Path, split: str) -> bool:
    """`instances_train2017.json`, `train.json` and `train/_annotations.coco.json` are of `train`."""
    words = [word for part in file.relative_to(folder).parts for word in re.split(r"[^A-Za-z]+", part)]
    return split in words or split in (file.stem, file.parent.name)


def read_coco(file: Path, pictures: Path | None = None) -> WrittenSet:
    """The pictures that a COCO file names.

    Args:
        pictures: their folder; None looks beside the file and around it.

    Raises:
        DataError: it is no such file.
    """
    told = _parsed(file)
    problems = [
        f"{file.name}: {count} {part} have the id {key!r}; give each its own"
        for part in ("images", "categories")
        for key, count in Counter(each["id"] for each in told[part]).items()
        if count > 1
    ]
    classes = {each["id"]: str(each["name"]).strip() for each in told["categories"]}
    names = tuple(dict.fromkeys(classes.values()))
    by_picture, crowds = _boxes(told["annotations"], classes, file.name, problems)
    images = {each["id"]: each for each in told["images"]}
    problems += [
        f"{file.name}: {len(boxes)} boxes are of the picture {key}, which it does not have"
        for key, boxes in by_picture.items()
        if key not in images
    ]
    root = pictures or _root(file, told["images"])
    found = []
    for key, image in images.items():
        name = str(image["file_name"])
        path = within(root, name)
        if path is None or not path.is_file():
            where = "leads out of the data folder" if path is None else f"is not in {root.name}"
            problems.append(f"{file.name}: the picture {name!r} {where}; see data.pictures")
            continue
        found.append(
            WrittenPicture(name, Stored(path), tuple(by_picture.get(key, ())), file.name, _size(image))
        )
    notes = [f"{crowds} annotations of crowds left out"] if crowds else []
    if len(names) < len(classes):
        notes.append(f"{len(classes)} categories have {len(names)} names; those of one name are one class")
    return WrittenSet("COCO", "xywh", tuple(found), names, told=tuple(notes), problems=tuple(problems))


def _parsed(file: Path) -> Mapping[str, Any]:
    """The file, checked in its outlines."""
    try:
        told = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no JSON: {error}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if not isinstance(told, dict) or not all(isinstance(told.get(part), list) for part in _PARTS):
        raise DataError(f"{file}: is no COCO file: it must be a mapping with the lists {', '.join(_PARTS)}")
    wanted = {"images": ("id", "file_name"), "annotations": ("image_id",), "categories": ("id", "name")}
    for part, fields in wanted.items():
        for number, each in enumerate(told[part], 1):
            if not isinstance(each, dict) or not all(
                isinstance(each.get(name), int | str) for name in fields
            ):
                raise DataError(f"{file}: {part}, entry {number}: needs {' and '.join(fields)}")
    return told


def _boxes(
    annotations: list[dict[str, Any]], classes: Mapping[Any, str], file: str, problems: list[str]
) -> tuple[dict[Any, list[WrittenBox]], int]:
    """Picture -> its boxes; and how many annotations are of crowds."""
    found: dict[Any, list[WrittenBox]] = defaultdict(list)
    crowds = 0
    for number, each in enumerate(annotations, 1):
        place = f"annotation {each.get('id', number)}"
        values = numbers(each["bbox"]) if isinstance(each.get("bbox"), list) else None
        if each.get("iscrowd"):
            crowds += 1
        elif values is None:
            problems.append(f"{file}, {place}: bbox must be four numbers: x, y, width, height")
        elif not isinstance(each.get("category_id"), int | str) or each["category_id"] not in classes:
            problems.append(
                f"{file}, {place}: there is no category {each.get('category_id')!r}; add it to categories"
            )
        else:
            found[each["image_id"]].append(WrittenBox(values, classes[each["category_id"]], place))
    return found, crowds


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height as the file says them, if it does."""
    width, height = image.get("width"), image.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return None


def _root(file: Path, images: list[dict[str, Any]]) -> Path:
    """The folder that has the first picture: that of the file, or one around it."""
    if not images:
        return file.parent
    split = re.sub(r"^(instances|annotations|person_keypoints)_", "", file.stem)
    around = [base / part for base in (file.parent, file.parent.parent) for part in ("", "images", split)]
    around += [base / "images" / split for base in (file.parent, file.parent.parent)]
    tried = ((place, within(place, str(images[0]["file_name"]))) for place in around)
    return next((place for place, path in tried if path is not None and path.is_file()), file.parent)
