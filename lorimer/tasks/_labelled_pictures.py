"""Finding pictures and what stands for their labels, in any of the forms they come in.

a folder of folders                  each is called as its label; deeper ones belong to it
with metadata.jsonl or .csv          rows of `file_name` and `label`
with IDX files                       train-images-idx3-ubyte.gz, ..., as MNIST and its successors
a table, a Parquet file              a column of paths or of pictures, and one of labels
a name                               a dataset on the hub
any of the folders in train/, ...    the parts of a dataset; `split` chooses
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lorimer.errors import DataError, listed
from lorimer.tasks._idx_files import IdxPicture, idx_files, read_idx
from lorimer.tasks._picture_decoding import Stored
from lorimer.tasks._picture_folder import METADATA_FILES, OTHER_PICTURE_SUFFIXES, PICTURE_SUFFIXES
from lorimer.tasks._text_rows import Row, Rows, read_rows

SUFFIXES = (*PICTURE_SUFFIXES, ".gif", ".tif", ".tiff")
# A part -> what folders of it are called.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "t10k"),
}
_COLUMNS = ("file_name", "image", "img", "picture", "path", "image_path", "file", "filename", "filepath")
_SHOWN = 3


class Readable(Protocol):
    """Where the bytes of a picture's file are from."""

    def read(self, name: str) -> bytes:
        """The bytes.

        Raises:
            DataError: they cannot be read; calls them `name`.
        """


@dataclass(frozen=True)
class InRow:
    """The bytes of a picture that stand in a row."""

    rows: Sequence[Row]
    place: int
    column: str

    def read(self, name: str) -> bytes:
        value = self.rows[self.place][self.column]
        return bytes(value["bytes"] if isinstance(value, Mapping) else value)


@dataclass(frozen=True)
class Found:
    """A picture that was not yet looked at: its name, where its bytes are, what its label is called."""

    name: str
    source: Readable
    label: Any


@dataclass(frozen=True)
class FoundPictures:
    """Everything in one place, notes on what was left out, what is wrong, and whether its labels are known to
    be names of classes."""

    place: str
    pictures: Sequence[Found]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    classes: bool = True

    def labels(self, column: str) -> Rows:
        """The labels as rows, each under `column`."""
        return Rows(
            [{column: picture.label} for picture in self.pictures],
            self.place,
            classes=(column,) if self.classes else (),
        )


@dataclass(frozen=True)
class Columns:
    """What the columns of tables are called, which split and configuration of a dataset on the hub, and how
    many rows at most; what the numbers in IDX files stand for."""

    picture: str | None = None
    label: str = "label"
    subset: str | None = None
    limit: int | None = None
    names: Sequence[str] = field(default=())


def find_pictures(place: str, split: str | None, columns: Columns) -> FoundPictures:
    """Every picture with a label in `place`; of its parts, `split`, or `train` where it has parts.

    Raises:
        DataError: there is nothing of the kind, or no such part.
    """
    path = Path(place).expanduser()
    if not path.is_dir():
        return _of_rows(
            read_rows(place, split=split, subset=columns.subset, limit=columns.limit), path, columns
        )
    parts, names = _parts(path), _names_of(split or "train")
    alike = (part for name, part in parts.items() if name in names)
    folder = parts.get((split or "train").lower()) or next(alike, None if parts else path)
    idx = idx_files(folder, names) if folder else None
    if folder is None or (split and names != SPLITS["train"] and not parts and not idx):
        known = f"it has {', '.join(parts)}" if parts else "it is in one piece"
        raise DataError(f"{path}: has no part {split!r}; {known}")
    if idx is not None:
        return _of_idx(*idx, columns)
    metadata = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(metadata) > 1:
        raise DataError(f"{folder}: both {' and '.join(METADATA_FILES)} are there; keep one")
    if metadata:
        return _of_rows(read_rows(str(metadata[0]), limit=columns.limit), metadata[0], columns)
    return _of_folders(folder, columns.limit)


def held_out_split(place: str, trained: str | None = None) -> str | None:
    """The part of a folder or of IDX files that is not for training: "validation" rather than "test", and
    not the part `trained`."""
    path = Path(place).expanduser()
    if not path.is_dir():
        return None
    parts = _parts(path)
    for split in ("validation", "test"):
        names = set(SPLITS[split])
        if trained not in names and (names & parts.keys() or idx_files(path, SPLITS[split])):
            return split
    return None


def _names_of(split: str) -> tuple[str, ...]:
    name = split.lower()
    return next((names for names in SPLITS.values() if name in names), (name,))


def _parts(folder: Path) -> dict[str, Path]:
    """The parts of a dataset by their names in small letters: the folders in it, if all that hold pictures
    are called so, `train` among them. They are labels where a train stands beside a bus."""
    known = {name for names in SPLITS.values() for name in names}
    parts = {each.name.lower(): each for each in _folders_in(folder) if each.name.lower() in known}
    others = (each for each in _folders_in(folder) if each.name.lower() not in known)
    if not parts.keys() & set(SPLITS["train"]) or any(any(pictures_in(each)) for each in others):
        return {}
    return parts


def _folders_in(folder: Path) -> list[Path]:
    """Without hidden ones, and without what macOS puts into archives."""
    return [
        each
        for each in sorted(folder.iterdir())
        if each.is_dir() and not each.name.startswith(".") and each.name != "__MACOSX"
    ]


def _of_folders(folder: Path, limit: int | None) -> FoundPictures:
    labels = _folders_in(folder)
    files = {label.name: list(pictures_in(label)) for label in labels}
    if not any(files.values()):
        raise DataError(
            f"{folder}: holds no labelled pictures. Put a folder for each label there, or a metadata.jsonl "
            'with rows such as {"file_name": "a.jpg", "label": "cat"}'
        )
    strays = [each.name for each in folder.iterdir() if each.suffix.lower() in SUFFIXES]
    problems = [f"{name}: lies outside of the labels' folders; move it into one" for name in sorted(strays)]
    empty = [label for label, own in files.items() if not own]
    notes = [f"without pictures, so no labels: {', '.join(empty[:_SHOWN])}"] if empty else []
    others = [
        path for label in labels for path in pictures_in(label, set(OTHER_PICTURE_SUFFIXES) - set(SUFFIXES))
    ]
    if others:
        shown = ", ".join(path.relative_to(folder).as_posix() for path in others[:_SHOWN])
        notes.append(f"left out, save as PNG or JPEG to use: {len(others)} such as {shown}")
    turns = itertools.zip_longest(*([(label, path) for path in own] for label, own in files.items()))
    pictures = [
        Found(path.relative_to(folder).as_posix(), Stored(path), label)
        for label, path in filter(None, itertools.chain.from_iterable(turns))
    ]  # of each label in turn, so that the first hold all labels
    return FoundPictures(folder.name, pictures[:limit], tuple(notes), tuple(problems))


def pictures_in(folder: Path, suffixes: Collection[str] = SUFFIXES) -> Iterator[Path]:
    """The files with these endings in a folder and the folders in it, sorted, without hidden ones."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            yield path


def _of_rows(rows: Rows, file: Path, columns: Columns) -> FoundPictures:
    """`file` is the table, whose paths begin at its folder, or nothing that exists."""
    known = [columns.picture] if columns.picture else _COLUMNS
    names: Collection[str] = rows.rows[0].keys()
    if columns.label not in names or not set(known) & set(names):  # a row may lack what others have
        names = dict.fromkeys(name for row in rows.rows for name in row)
    column = next((name for name in known if name in names), None)
    if column is None or columns.label not in names:
        missing = "pictures, which data.image names," if column is None else "labels, which data.label names,"
        raise DataError(f"{rows.source}: has no column of {missing} among {', '.join(map(str, names))}")
    pictures, problems = [], []
    for place, row in enumerate(rows.rows):
        found = _of_row(rows, place, row, column, columns.label, file.parent)
        if isinstance(found, Found):
            pictures.append(found)
        else:
            problems.append(found)
    if not pictures:
        raise DataError(listed(rows.source, problems))
    classes = columns.label in rows.classes
    return FoundPictures(rows.source, pictures, rows.skipped, tuple(problems), classes)


def _of_row(rows: Rows, place: int, row: Row, column: str, label: str, folder: Path) -> Found | str:
    """The picture of one row, or what is wrong with it."""
    value = row.get(column)
    path = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(value, bytes) or (isinstance(value, Mapping) and value.get("bytes")):
        name = Path(path).name if isinstance(path, str) else f"row {place + 1}"
        return Found(name, InRow(rows.rows, place, column), row.get(label))
    if not isinstance(path, str) or not path.strip():
        return f"row {place + 1}: {column!r} is neither a path nor a picture"
    file = folder / path
    whole = Path(os.path.normpath(file.absolute()))  # a link in the folder may lead wherever it wants
    if not whole.is_relative_to(os.path.normpath(folder.absolute())):
        return f"row {place + 1}: {path!r} leads out of the table's folder; move the table above its pictures"
    if not file.is_file():
        return f"row {place + 1}: there is no picture {path!r}"
    return Found(path, Stored(file), row.get(label))


def _of_idx(images: Path, labels: Path, columns: Columns) -> FoundPictures:
    values, places = read_idx(images), read_idx(labels)
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[3] != 3):
        raise DataError(f"{images}: holds no pictures, of height and width, but an array of {values.shape}")
    if not values.size:
        raise DataError(f"{images}: holds no pictures")
    if places.ndim != 1 or len(places) != len(values):
        raise DataError(f"{labels}: has {places.shape} labels for {len(values)} pictures in {images.name}")
    if columns.names and places.max() >= len(columns.names):
        raise DataError(
            f"data.labels: are {len(columns.names)}, and {labels.name} has numbers up to {places.max()}"
        )
    called = [columns.names[each] if columns.names else int(each) for each in places[: columns.limit]]
    stem = images.name.split("-images")[0]
    pictures = [
        Found(f"{stem} {place}", IdxPicture(values, place), label) for place, label in enumerate(called)
    ]
    return FoundPictures(images.name, pictures)
