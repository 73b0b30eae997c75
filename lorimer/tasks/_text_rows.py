"""Rows of text data, from any of the forms they come in.

    .jsonl .json .csv .tsv .parquet .yaml .yml     rows as they stand there
    .txt, or no ending                             one text, or several between lines of a single %
    a folder                                       of such files; or of one folder per label with .txt in each
    a name                                         a dataset on the hub

A row that cannot be read is skipped, and said; a file without one good row is an error.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorimer.errors import DataError, MissingDependencyError

Row = Mapping[str, Any]

_SHOWN = 3  # how many reasons of one file are told


@dataclass(frozen=True)
class Rows:
    """Rows, where they are from without a path, and lines that say what was skipped and why."""

    rows: Sequence[Row]
    source: str
    skipped: tuple[str, ...] = ()


def read_rows(place: str, *, split: str | None = None, subset: str | None = None) -> Rows:
    """All rows of a file, a folder or a dataset on the hub.

    Args:
        split, subset: of a dataset on the hub; `train` and its only configuration by default.

    Raises:
        DataError: there is nothing, or nothing that can be read; names the file, the line and the mend.
        MissingDependencyError: a form needs a package that is not installed.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return _of_file(path)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix or place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise DataError(f"data: there is no file or folder {place}")
    return _of_hub(place, split or "train", subset)


def _of_file(path: Path) -> Rows:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(name for name in _READERS if name)
        raise DataError(f"{path}: no known form of data. Known endings: {known}")
    problems: list[str] = []
    rows = [row for row in reader(path, problems) if row]
    if not rows:
        told = "; ".join(problems[:_SHOWN]) or "it is empty"
        raise DataError(f"{path}: holds no row that can be read: {told}")
    skipped: tuple[str, ...] = ()
    if problems:
        skipped = (f"{path.name}: {len(problems)} rows skipped: {'; '.join(problems[:_SHOWN])}",)
    return Rows(rows, path.name, skipped)


def _of_folder(folder: Path) -> Rows:
    labels = sorted(each for each in folder.iterdir() if each.is_dir() and any(each.glob("*.txt")))
    if labels:
        files = [(label.name, file) for label in labels for file in sorted(label.glob("*.txt"))]
        rows = [{"text": _read_text(file), "label": label} for label, file in files]
        return Rows([row for row in rows if row["text"].strip()], folder.name)
    files_here = sorted(
        each
        for each in folder.rglob("*")
        if each.is_file() and each.suffix.lower() in _READERS and each.suffix
    )
    if not files_here:
        raise DataError(
            f"{folder}: holds no data: neither {', '.join(filter(None, _READERS))} nor folders of .txt"
        )
    found = [_of_file(file) for file in files_here]
    return Rows(
        [row for each in found for row in each.rows],
        folder.name,
        tuple(line for each in found for line in each.skipped),
    )


def _of_hub(name: str, split: str, subset: str | None) -> Rows:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            f'data: {name}: datasets of the hub need the package datasets: pip install "lorimer[text]"'
        ) from error
    try:
        found = load_dataset(name, subset, split=split)
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"data: there is no file or folder {name}, and the hub gives: {first}") from error
    return Rows(found, name)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text (byte {error.start}); convert it, for instance with iconv"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _jsonl(path: Path, problems: list[str]) -> Iterator[Row]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number} is no JSON ({error.msg})")
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
    yield from _listed(value, path, problems)


def _yaml(path: Path, problems: list[str]) -> Iterator[Row]:
    import yaml

    try:
        value = yaml.load(_read_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if isinstance(value, dict) and isinstance(value.get("conversations"), list):
        value = value["conversations"]  # of lists, each a conversation
    yield from _listed(value, path, problems)


def _listed(value: Any, path: Path, problems: list[str]) -> Iterator[Row]:
    """Rows of a list, or of the one list that a mapping has (`data`, `rows`, ...)."""
    if isinstance(value, dict):
        lists = [each for each in value.values() if isinstance(each, list)]
        value = lists[0] if len(lists) == 1 else [value]
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


def _table(separator: str) -> Callable[[Path, list[str]], Iterator[Row]]:
    def read(path: Path, problems: list[str]) -> Iterator[Row]:
        csv.field_size_limit(2**27)
        text = io.StringIO(_read_text(path), newline="")
        if separator == ",":
            lines = csv.reader(text)
        else:  # a tab ends a field, always
            lines = csv.reader(text, delimiter=separator, quoting=csv.QUOTE_NONE)
        names = [name.strip() for name in next(lines, [])]
        if len(set(names)) < len(names) or not all(names):
            raise DataError(f"{path}: the first line must name the columns, each once: {names[:8]}")
        for row in lines:
            if len(row) == len(names):
                yield dict(zip(names, row, strict=True))
            elif row:
                problems.append(f"line {lines.line_num} has {len(row)} fields and not {len(names)}")

    return read


def _parquet(path: Path, problems: list[str]) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f'{path} needs pyarrow: pip install "lorimer[text]"') from error
    try:
        rows: Iterable[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no Parquet file: {error}") from error
    yield from rows


def _plain(path: Path, problems: list[str]) -> Iterator[Row]:
    text = _read_text(path).replace("\r\n", "\n")
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
