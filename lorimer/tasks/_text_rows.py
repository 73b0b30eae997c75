"""Rows of text data, from any of the forms they come in.

    .jsonl .json .csv .tsv .parquet .yaml .yml     rows as they stand there
    .txt, or no ending                             one text, or several between lines of a single %
    a folder                                       of such files; for labels, of one folder per label too
    a name                                         a dataset on the hub

A row that cannot be read is skipped, and said; a file without one good row is an error.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lorimer.errors import DataError, MissingDependencyError

Row = Mapping[str, Any]

_COLOUR = re.compile("\x1b\\[[0-9;]*m")  # what terminals take for colours, as fortunes have them
_OF_A_ROW = {
    "messages",
    "conversations",
    "prompt",
    "chosen",
    "rejected",
    "choices",
    "tools",
}  # lists in a row
_LONGEST_FIELD = 2**27  # characters of a field of a table
_SHOWN = 3  # how many reasons of one file are told


@dataclass(frozen=True)
class Rows:
    """Rows, where they are from without a path, lines that say what was skipped and why, and the columns that
    are known to hold names of classes."""

    rows: Sequence[Row]
    source: str
    skipped: tuple[str, ...] = ()
    classes: Collection[str] = ()


def read_rows(
    place: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    by_label: bool = False,
) -> Rows:
    """The rows of a file, a folder or a dataset on the hub.

    Args:
        split, subset: of a dataset on the hub; `train` and its only configuration by default.
        limit: at most so many rows, the first. JSONL, tables and Parquet are read no further, and no more of
            a dataset on the hub is fetched.
        by_label: a folder of folders with .txt holds texts with the folders' names as labels.

    Raises:
        DataError: there is nothing, or nothing that can be read; names the file, the line and the mend.
        MissingDependencyError: a form needs a package that is not installed.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return _of_file(path, limit)
    if path.is_dir():
        labels = [each for each in sorted(path.iterdir()) if each.is_dir()] if by_label else []
        labels = [each for each in labels if _texts_in(each)]
        return _of_labels(path, labels, limit) if labels else _of_folder(path, limit)
    if (
        path.suffix.lower() in filter(None, _READERS)
        or place.startswith((".", "/", "~"))
        or place.count("/") > 1
    ):
        raise DataError(f"data: there is no file or folder {place}")
    return _of_hub(place, split or "train", subset, limit)


def _of_file(path: Path, limit: int | None) -> Rows:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(name for name in _READERS if name)
        raise DataError(f"{path}: no known form of data. Known endings: {known}")
    problems: list[str] = []
    rows = list(itertools.islice(filter(None, reader(path, problems)), limit))
    if not rows:
        told = "; ".join(problems[:_SHOWN]) or "it is empty"
        raise DataError(f"{path}: holds no row that can be read: {told}")
    skipped: tuple[str, ...] = ()
    if problems:
        skipped = (f"{path.name}: {len(problems)} rows skipped: {'; '.join(problems[:_SHOWN])}",)
    return Rows(rows, path.name, skipped)


def _of_folder(folder: Path, limit: int | None) -> Rows:
    files_here = sorted(
        each
        for each in folder.rglob("*")
        if each.is_file() and each.suffix.lower() in _READERS and each.suffix
    )
    if not files_here:
        raise DataError(
            f"{folder}: holds no data: neither {', '.join(filter(None, _READERS))} nor folders of .txt"
        )
    found: list[Rows] = []
    for file in files_here:
        left = None if limit is None else limit - sum(len(each.rows) for each in found)
        if left != 0:
            found.append(_of_file(file, left))
    return Rows(
        [row for each in found for row in each.rows],
        folder.name,
        tuple(line for each in found for line in each.skipped),
    )


def _texts_in(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.suffix.lower() == ".txt")


def _of_labels(folder: Path, labels: Sequence[Path], limit: int | None) -> Rows:
    """A text from each label in turn, so that the first rows hold all labels."""
    turns = itertools.zip_longest(*([(label.name, file) for file in _texts_in(label)] for label in labels))
    files = [each for turn in turns for each in turn if each is not None]
    rows, empty = [], 0
    for label, file in files[:limit]:
        text = _read_text(file)
        empty += not text.strip()
        if text.strip():
            rows.append({"text": text, "label": label})
    others = [each.name for each in sorted(folder.iterdir()) if each not in labels]
    skipped = [f"{folder.name}: {empty} empty files skipped"] if empty else []
    if others:
        skipped.append(f"{folder.name}: {len(others)} without .txt left alone: {', '.join(others[:_SHOWN])}")
    if not rows:
        raise DataError(f"{folder}: all its texts are empty")
    return Rows(rows, folder.name, tuple(skipped), ("label",))


def _of_hub(name: str, split: str, subset: str | None, limit: int | None) -> Rows:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            f'data: {name}: datasets of the hub need the package datasets: pip install "lorimer[text]"'
        ) from error
    try:
        found = _undecoded(load_dataset(name, subset, split=split, streaming=limit is not None))
        rows = found if limit is None else list(found.take(limit))
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"data: there is no file or folder {name}, and the hub gives: {first}") from error
    named = {
        column: feature.names
        for column, feature in (getattr(found, "features", None) or {}).items()
        if isinstance(getattr(feature, "names", None), list)
    }  # labels, which stand there as numbers
    return Rows(_Named(rows, named) if named else rows, name, classes=tuple(named))


def _undecoded(found: Any) -> Any:
    """A dataset whose pictures are given as their files' bytes."""
    from datasets import Image

    for column, feature in (found.features or {}).items():
        if isinstance(feature, Image):
            found = found.cast_column(column, Image(decode=False))
    return found


@dataclass(frozen=True)
class _Named(Sequence[Row]):
    """Rows with what their numbers stand for; -1 stands for nothing."""

    rows: Sequence[Row]
    names: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        row = self.rows[place]
        told = {
            column: names[row[column]] if isinstance(row[column], int) and row[column] >= 0 else None
            for column, names in self.names.items()
        }
        return {**row, **told}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The text of a file, its ends of lines as they are."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text (byte {error.start}); convert it, for instance with iconv"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _read_text(path: Path) -> str:
    with _opened(path) as file:
        return file.read().replace("\r\n", "\n")


def _jsonl(path: Path, problems: list[str]) -> Iterator[Row]:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                json.dumps(value, ensure_ascii=False).encode()  # half a character makes tokenizers fail
            except (ValueError, RecursionError) as error:
                problems.append(f"line {number} is no JSON ({getattr(error, 'msg', error)})")
                continue
            if isinstance(value, dict):
                yield value
            else:
                problems.append(f"line {number} is no mapping")


def _json(path: Path, problems: list[str]) -> Iterator[Row]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line, under the wrong name
            yield from _jsonl(path, problems)
            return
        raise DataError(f"{path}: line {error.lineno} is no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON that can be read: {error}") from error
    yield from _listed(value, path, problems)


def _yaml(path: Path, problems: list[str]) -> Iterator[Row]:
    import yaml

    try:
        value = yaml.load(_read_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if isinstance(value, dict) and isinstance(value.get("conversations"), list):
        value = value["conversations"]  # of lists, each a conversation
    yield from _listed(value, path, problems)


def _listed(value: Any, path: Path, problems: list[str]) -> Iterator[Row]:
    """Rows of a list, or of the one list that a mapping has (`data`, `rows`, ...)."""
    if isinstance(value, dict):
        lists = {name: each for name, each in value.items() if isinstance(each, list)}
        value = [value] if len(lists) != 1 or lists.keys() & _OF_A_ROW else next(iter(lists.values()))
    if not isinstance(value, list):
        raise DataError(f"{path}: must hold a list of rows, not {type(value).__name__}")
    for number, each in enumerate(value, 1):
        if isinstance(each, dict):
            yield each
        elif isinstance(each, list):
            yield {"conversation": [str(text) for text in each if text is not None]}
        elif isinstance(each, str):
            yield {"text": each}
        else:
            problems.append(f"row {number} is a {type(each).__name__}")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Within, a field of a table may be as long as a book; the limit is the whole process's."""
    former = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(former)


def _table(separator: str) -> Callable[[Path, list[str]], Iterator[Row]]:
    def read(path: Path, problems: list[str]) -> Iterator[Row]:
        with _long_fields(), _opened(path) as text:
            if separator == ",":
                lines = csv.reader(text, strict=True)
            else:  # a tab ends a field, always
                lines = csv.reader(text, delimiter=separator, quoting=csv.QUOTE_NONE)
            names = [name.strip() for name in next(lines, [])]
            if len(set(names)) < len(names) or not all(names):
                raise DataError(f"{path}: the first line must name the columns, each once: {names[:8]}")
            try:
                for row in lines:
                    if len(row) == len(names):
                        yield dict(zip(names, row, strict=True))
                    elif row:
                        problems.append(f"line {lines.line_num} has {len(row)} fields and not {len(names)}")
            except csv.Error as error:
                raise DataError(f"{path}: line {lines.line_num}: {error}; is a quote not closed?") from error

    return read


def _parquet(path: Path, problems: list[str]) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f'{path} needs pyarrow: pip install "lorimer[text]"') from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no Parquet file: {error}") from error


def _plain(path: Path, problems: list[str]) -> Iterator[Row]:
    text = _COLOUR.sub("", _read_text(path))
    pieces = text.split("\n%\n") if "\n%\n" in text else [text]
    for piece in pieces:
        if piece.strip().strip("%").strip():
            yield {"text": piece.strip("\n")}


_READERS: dict[str, Callable[[Path, list[str]], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".txt": _plain,
    "": _plain,
}
