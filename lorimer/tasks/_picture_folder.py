"""Pictures with captions in a folder.

A caption stands beside its picture (`cat.png` and `cat.txt` or `cat.caption`), or in one file
`metadata.jsonl` or `metadata.csv` in the folder with the fields `file_name` and `text`. A folder called
`10_black cat`, the one that was named or one within it, tells kohya's trainers how often its pictures are
shown and what stands in for a missing caption; so it does here.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lorimer.tasks._picture_decoding import Stored
from lorimer.tasks._picture_sources import Entry, Source, one_line

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIXES = (".txt", ".caption")
OTHER_PICTURE_SUFFIXES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".svg", ".psd")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
_KOHYA_FOLDER = re.compile(r"([1-9]\d{0,2})_(.*)")  # `2019_holiday` is a year


def read_folder(source: Source, problems: list[str]) -> list[Entry]:
    """Every picture in the folder of `source`, sorted by name; what is wrong goes to `problems`.

    A picture whose caption is at fault is among them, so that what else is wrong with it is found too.
    """
    folder = source.path
    metadata = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(metadata) > 1:
        problems.append("both metadata.jsonl and metadata.csv are there; keep one")
    if (folder / "img").is_dir() and (folder / "reg").is_dir():
        problems.append(
            "holds img and reg, as kohya's page lays out its projects; give img as the path and reg as a "
            "further source with `regularisation: true`"
        )
        return []
    if metadata:
        named = _captions_from_metadata(metadata[0], folder, problems)
        return [_entry(path, text, source) for path, text in named.items()]
    files = _pictures_of(source)
    captions = _captions_beside(files, source, problems)
    return [_entry(path, captions.get(path), source) for path in files]


def notes_on_folder(source: Source) -> list[str]:
    """What of the folder is not used, and which folders' names tell of repeats; one line each."""
    folder = source.path
    metadata = next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)
    files = _pictures_of(source)
    if metadata is not None:
        ignored = len(set(files) - _captions_from_metadata(metadata, folder, []).keys())
        return [f"left out, as the metadata file does not name them: {ignored}"] if ignored else []
    notes = []
    if others := _picture_files(folder, OTHER_PICTURE_SUFFIXES, source.nested):
        names = ", ".join(path.relative_to(folder).as_posix() for path in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        notes.append(f"left out, save as PNG or JPEG to use: {names}{more}")
    if source.repeats is None:
        told = {name: kohya_name(path, folder) for path in files if (name := _kohya_folder(path, folder))}
        notes += [f"{name}: shown {repeats} times an epoch" for name, (repeats, _) in sorted(told.items())]
    return notes


def kohya_name(path: Path, folder: Path) -> tuple[int, str | None]:
    """(repeats, words) of the innermost folder around a picture with a name such as `10_black cat`, no
    further out than `folder` itself; (1, None) where there is none."""
    match = _KOHYA_FOLDER.fullmatch(_kohya_folder(path, folder) or "")
    return (int(match[1]), match[2].strip() or None) if match else (1, None)


def _kohya_folder(path: Path, folder: Path) -> str | None:
    names = (folder.resolve().name, *path.relative_to(folder).parts[:-1])
    return next((name for name in reversed(names) if _KOHYA_FOLDER.fullmatch(name)), None)


def _entry(path: Path, caption: str | None, source: Source) -> Entry:
    repeats = source.repeats if source.repeats is not None else kohya_name(path, source.path)[0]
    return Entry(path.relative_to(source.path).as_posix(), Stored(path), caption, repeats)


def _pictures_of(source: Source) -> list[Path]:
    """The pictures of a folder, without masks that lie in it."""
    files = _picture_files(source.path, PICTURE_SUFFIXES, source.nested)
    if not isinstance(source.masks, Path):
        return files
    root, masks = source.path.resolve(), source.masks.resolve()
    return [file for file in files if masks not in (root / file.relative_to(source.path)).parents]


def _picture_files(folder: Path, suffixes: tuple[str, ...], nested: bool) -> list[Path]:
    """The pictures in `folder` and, if `nested`, the folders in it, sorted, without hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*") if nested else folder.glob("*"))
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _captions_beside(files: list[Path], source: Source, problems: list[str]) -> dict[Path, str]:
    """Picture -> caption from the file of the same name; what is wrong goes to `problems`."""
    captions = {}
    suffix, folder = source.caption_suffix, source.path
    suffixes = CAPTION_SUFFIXES if suffix == "auto" else (suffix if suffix.startswith(".") else f".{suffix}",)
    stems = Counter(path.with_suffix("") for path in files)
    for path in files:
        name = path.relative_to(folder).as_posix()
        beside = [path.with_suffix(each) for each in suffixes if path.with_suffix(each).is_file()]
        default = source.default_caption
        if default is None and source.repeats is None:
            default = kohya_name(path, folder)[1]
        if stems[path.with_suffix("")] > 1:
            problems.append(f"{name}: another picture has the same name but for the ending; rename one")
        elif len(beside) > 1:
            problems.append(f"{name}: has captions in {' and '.join(file.name for file in beside)}; keep one")
        elif beside:
            caption = one_line(_text(beside[0], folder, problems))
            if caption == "":
                problems.append(f"{beside[0].relative_to(folder).as_posix()}: the caption is empty")
            if caption:
                captions[path] = caption
        elif default is not None:
            captions[path] = default
        else:
            wanted = path.with_suffix(suffixes[0]).name
            problems.append(f"{name}: has no caption; write one to {wanted}, or set data.default_caption")
    return captions


def _captions_from_metadata(metadata: Path, folder: Path, problems: list[str]) -> dict[Path, str]:
    """Picture -> caption from metadata.jsonl or metadata.csv; what is wrong goes to `problems`."""
    text = _text(metadata, folder, problems)
    captions: dict[Path, str] = {}
    rows = _csv_rows(text or "") if metadata.suffix == ".csv" else _jsonl_rows(text or "")
    for line, row in rows:
        place = f"{metadata.name}, line {line}"
        if isinstance(row, str):
            problems.append(f"{place}: {row}")
            continue
        name, caption = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not isinstance(caption, str):
            problems.append(f"{place}: needs the fields file_name and text, both text")
            continue
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{place}: {name!r} leads out of the data folder")
        elif not path.is_file():
            problems.append(f"{place}: there is no picture {name!r}")
        elif path in captions:
            problems.append(f"{place}: {name!r} is named a second time")
        elif not one_line(caption):
            problems.append(f"{place}: the caption of {name!r} is empty")
        else:
            captions[path] = one_line(caption) or ""
    if text is not None and not captions and not problems:
        problems.append(f"{metadata.name}: names no pictures")
    return captions


def _jsonl_rows(text: str) -> Iterator[tuple[int, dict[str, object] | str]]:
    """(line number, row, or what is wrong with it)."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            yield number, f"is not JSON: {error}"
        else:
            yield number, row if isinstance(row, dict) else "is no JSON object"


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, object] | str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, dict(row)
    except csv.Error as error:
        yield reader.line_num + 1, f"is not CSV: {error}"


def _text(path: Path, folder: Path, problems: list[str]) -> str | None:
    """The text of a file in UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(
            f"{path.relative_to(folder).as_posix()}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        )
    except OSError as error:
        problems.append(f"{path.relative_to(folder).as_posix()}: cannot be read: {error.strerror}")
    return None
