"""Boxes in Pascal VOC's form: one XML file for each picture.

    Annotations/cat.xml   JPEGImages/cat.jpg   ImageSets/Main/train.txt      as the challenge has it
    annotations/cat.xml   images/cat.jpg                                     or annotations/xmls/cat.xml
    cat.xml   cat.jpg                                                        side by side, as labelImg does
    train/cat.xml   train/cat.jpg                                            a folder for each split

The challenge counts pixels from 1 and most programs that write the form from 0; corners are taken as they
stand, since a file does not say which it is, and the difference is one pixel.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from lorimer.errors import DataError
from lorimer.tasks._box_pictures import WrittenBox, WrittenPicture, WrittenSet, read_lines, within
from lorimer.tasks._picture_decoding import Stored
from lorimer.tasks._picture_folder import PICTURE_SUFFIXES

_ANNOTATIONS = ("Annotations", "annotations", "annotations/xmls")
_PICTURES = ("JPEGImages", "images")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LARGEST = 10_000_000  # bytes of one file; a thousand boxes take a third of a megabyte


def is_voc(folder: Path) -> bool:
    """Whether a folder holds such annotations."""
    return any(True for place in _places(folder, None) for _ in place.glob("*.xml"))


def read_voc(folder: Path, split: str | None) -> WrittenSet:
    """The pictures that have annotations: all, or those of a split, a list in ImageSets/Main or a folder.

    Raises:
        DataError: there is no such split.
    """
    annotations = next(place for place in _places(folder, split) if any(place.glob("*.xml")))
    files = sorted(annotations.glob("*.xml"))
    if split is not None and annotations.name != split:
        files = _of_split(folder, annotations, split)
    own = annotations not in [folder / name for name in _ANNOTATIONS]
    pictures = annotations if own else _pictures_folder(folder)
    problems: list[str] = []
    read = [_read(file, pictures, folder, problems) for file in files]
    found = tuple(each for each in read if each is not None)
    return WrittenSet("Pascal VOC", "xyxy", found, problems=tuple(problems))


def _places(folder: Path, split: str | None) -> list[Path]:
    """Where annotations may lie, the likeliest first."""
    splits = [folder / split] if split is not None else []
    return [*splits, *(folder / name for name in _ANNOTATIONS), folder]


def _pictures_folder(folder: Path) -> Path:
    """Where pictures lie apart from annotations."""
    return next((folder / name for name in _PICTURES if (folder / name).is_dir()), folder / _PICTURES[0])


def _of_split(folder: Path, annotations: Path, split: str) -> list[Path]:
    """The annotations of the pictures that a list names."""
    lists = folder / "ImageSets" / "Main"
    path = within(lists, f"{split}.txt")
    if path is None or not path.is_file():
        known = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
        raise DataError(f"{folder}: has no split {split!r} in ImageSets/Main. Known: {known}")
    files = []
    for line in filter(None, map(str.strip, read_lines(path))):
        # A name may hold spaces; without such a file what follows the first is a mark, as in cat_train.txt.
        named = [within(annotations, f"{stem}.xml") for stem in (line, line.split()[0])]
        if None in named:
            raise DataError(f"{path}: {line!r} leads out of the data folder")
        there = [file for file in named if file is not None]
        files.append(next((file for file in there if file.is_file()), there[-1]))
    return files


def _read(file: Path, pictures: Path, folder: Path, problems: list[str]) -> WrittenPicture | None:
    source = file.relative_to(folder).as_posix()
    try:
        root = parse_xml(file.read_bytes())
    except OSError as error:
        problems.append(f"{source}: cannot be read: {error.strerror}")
        return None
    except ValueError as error:
        problems.append(f"{source}: {error}")
        return None
    picture = _picture_of(file, root, pictures)
    if picture is None:
        problems.append(f"{source}: there is no picture {file.stem} in {pictures.name}; put it there")
        return None
    boxes = []
    for number, each in enumerate(root.iter("object"), 1):
        values = [each.findtext(f"bndbox/{corner}") for corner in _CORNERS]
        try:
            corners = tuple(float(value) for value in values if value is not None)
        except ValueError:
            corners = ()
        label = (each.findtext("name") or "").strip()
        if len(corners) != 4:
            problems.append(f"{source}, object {number}: its bndbox must have the numbers {_CORNERS}")
        elif not label:
            problems.append(f"{source}, object {number}: needs a name, its class")
        else:
            boxes.append(WrittenBox(corners, label, f"object {number}"))
    name = picture.relative_to(folder).as_posix()
    return WrittenPicture(name, Stored(picture), tuple(boxes), source, _size(root))


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root of an XML document.

    Raises:
        ValueError: it is none, is too large, or declares a document type, as files that harm do.
    """
    if len(data) > _LARGEST:
        raise ValueError(f"holds {len(data):,} bytes, and no annotation of one picture is so long")

    def refuse(*_: object) -> None:
        raise ValueError("declares a document type, which no annotation needs; remove its DOCTYPE")

    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = refuse
    try:
        guard.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError, LookupError) as error:  # of an encoding of no such name
        raise ValueError(f"is no XML: {error}") from error


def _picture_of(file: Path, root: ElementTree.Element, pictures: Path) -> Path | None:
    """The picture of the same stem, else the one that the file names."""
    beside = [
        pictures / f"{file.stem}{suffix}"
        for suffix in (*PICTURE_SUFFIXES, *(each.upper() for each in PICTURE_SUFFIXES))
    ]
    found = next((path for path in beside if path.is_file()), None)
    named = (root.findtext("filename") or "").strip()
    if found is None and named:
        path = within(pictures, named)
        found = path if path is not None and path.is_file() else None
    return found


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """What the file says of the picture's size; programs that do not know it write 0."""
    try:
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None
