"""Pictures with captions in webdataset shards: `.tar` files with `key.png` beside `key.txt` or `key.json`.

Members are read in place. Nothing is written to disk, and no name in an archive is used as a path. Format:
github.com/webdataset/webdataset.
"""

from __future__ import annotations

import json
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lorimer.errors import DataError
from lorimer.tasks._picture_decoding import Stored
from lorimer.tasks._picture_folder import PICTURE_SUFFIXES
from lorimer.tasks._picture_sources import Entry, Source, one_line

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CAPTION_FIELDS = ("caption", "text")  # of key.json
_MAX_SHARDS = 100_000
_MAX_CAPTION_BYTES = 1 << 20
_MAX_PICTURE_BYTES = 1 << 29


@dataclass
class _Sample:
    """What an archive holds under one key."""

    picture: Stored | None = None
    texts: dict[str, Stored] = field(default_factory=dict)


def read_shards(source: Source, problems: list[str]) -> list[Entry]:
    """Every picture in the shards of `source`, in their order; what is wrong goes to `problems`."""
    entries = []
    names = shard_names(str(source.path))
    for path in map(Path, names):
        try:
            samples = _samples(path)
        except (tarfile.TarError, OSError, EOFError) as error:
            problems.append(f"{path}: is no whole, uncompressed tar archive ({error})")
            continue
        for key, sample in samples.items():
            name = key if len(names) == 1 else f"{path.stem}/{key}"
            if isinstance(sample, str):
                problems.append(f"{name}: {sample}")
            elif sample.picture is not None:
                caption = _caption(name, sample, source, problems)
                entries.append(Entry(name, sample.picture, caption, source.repeats or 1))
    return entries


def shard_names(pattern: str) -> list[str]:
    """`x-000.tar` to `x-010.tar` for `x-{000..010}.tar`.

    Raises:
        DataError: there would be too many.
    """
    ranges = _RANGE.findall(pattern)
    count = math.prod(max(int(last) + 1 - int(first), 0) for first, last in ranges)
    if count > _MAX_SHARDS:
        raise DataError(f"{pattern}: names {count:,} archives; {_MAX_SHARDS:,} are the most")
    names = [pattern]
    for first, last in ranges:  # each pass fills in one range, the leftmost
        texts = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        names = [_RANGE.sub(text, name, count=1) for name in names for text in texts]
    return names


def _samples(path: Path) -> dict[str, _Sample | str]:
    """Key -> what the archive holds under it, or what is wrong with that."""
    samples: dict[str, _Sample | str] = {}
    for member in _members(path):
        name = member.name.removeprefix("./").lstrip("/")  # a name, never a path
        folder, slash, file = name.rpartition("/")
        stem, dot, ending = file.partition(".")  # webdataset's keys end at the first dot
        suffix = f"{dot}{ending}".lower()
        if not stem or suffix not in (*PICTURE_SUFFIXES, ".txt", ".json"):
            continue
        sample = samples.setdefault(f"{folder}{slash}{stem}", _Sample())
        stored = Stored(path, member.offset_data, member.size)
        if isinstance(sample, str):
            continue
        if suffix not in PICTURE_SUFFIXES:
            sample.texts[suffix] = stored
        elif sample.picture is not None:
            samples[f"{folder}{slash}{stem}"] = f"there are two pictures of this name in {path.name}"
        elif member.size > _MAX_PICTURE_BYTES:
            samples[f"{folder}{slash}{stem}"] = f"{member.size:,} bytes are too large for a picture"
        else:
            sample.picture = stored
    return samples


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The plain, visible files in an archive."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            hidden = any(part.startswith(".") for part in member.name.removeprefix("./").split("/"))
            if member.isreg() and not member.issparse() and not hidden:
                yield member


def _caption(name: str, sample: _Sample, source: Source, problems: list[str]) -> str | None:
    suffix = ".txt" if ".txt" in sample.texts else ".json"
    stored = sample.texts.get(suffix)
    if stored is None:
        if source.default_caption is None:
            problems.append(f"{name}: has no caption in a .txt or .json; set data.default_caption")
        return source.default_caption
    if (stored.length or 0) > _MAX_CAPTION_BYTES:
        problems.append(f"{name}{suffix}: is too large for a caption")
        return None
    try:
        text = stored.read(f"{name}{suffix}").decode("utf-8-sig")
        caption = one_line(text if suffix == ".txt" else _field(json.loads(text)))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        problems.append(f"{name}{suffix}: cannot be read: {error}")
        return None
    if not caption:
        fields = f"; it stands under {' or '.join(_CAPTION_FIELDS)}" if suffix == ".json" else ""
        problems.append(f"{name}{suffix}: the caption is empty{fields}")
    return caption or None


def _field(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    found = next((value[name] for name in _CAPTION_FIELDS if name in value), None)
    return found if isinstance(found, str) else None
