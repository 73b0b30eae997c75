"""Pictures with captions from a folder: finding them, checking them all, turning them into pixels.

A caption stands beside its picture (`cat.png` and `cat.txt` or `cat.caption`), or in one file
`metadata.jsonl` or `metadata.csv` in the folder with the fields `file_name` and `text`. Whatever is
wrong with any picture or caption is gathered, so that a person mends it all at once.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lorimer.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIXES = (".txt", ".caption")
OTHER_PICTURE_SUFFIXES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".svg", ".psd")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
# A picture that would have to be enlarged more than this many times teaches blur.
MAX_ENLARGEMENT = 2.0
_SHOWN_PROBLEMS = 50


@dataclass(frozen=True)
class Picture:
    """One training picture.

    Attributes:
        name: its path within the data folder, with forward slashes.
        caption: one line of text.
        pixels: (3, resolution, resolution), uint8.
        enlarged: whether the file was smaller than the resolution.
    """

    name: str
    caption: str
    pixels: Tensor
    enlarged: bool


def read_pictures(
    folder: Path,
    resolution: int,
    *,
    caption_suffix: str = "auto",
    default_caption: str | None = None,
    trigger: str | None = None,
) -> list[Picture]:
    """Every picture under `folder` with its caption, sorted by name.

    Pictures are turned upright by their EXIF orientation, laid on white where they are transparent, resized
    so that the shorter side is `resolution` (Lanczos) and cropped around the centre.

    Args:
        caption_suffix: ending of caption files, or "auto" for .txt and .caption.
        default_caption: what holds for pictures that have none; without, they are an error.
        trigger: put before captions that lack it.

    Raises:
        DataError: there is no such folder, no picture in it, or any of them has a problem; all are listed.
    """
    if not folder.is_dir():
        raise DataError(f"data.path {folder}: there is no such folder")
    problems: list[str] = []
    files = _picture_files(folder)
    metadata = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(metadata) > 1:
        problems.append("both metadata.jsonl and metadata.csv are there; keep one")
    if metadata:
        captions = _captions_from_metadata(metadata[0], folder, problems)
    else:
        captions = _captions_beside(files, caption_suffix, default_caption, folder, problems)
    # A picture whose caption is at fault is read as well, so that what else is wrong with it is named too.
    wanted = captions if metadata else {path: captions.get(path, "") for path in files}
    pictures = []
    for path, caption in wanted.items():
        try:
            pictures.append(
                _read_picture(
                    path, path.relative_to(folder).as_posix(), with_trigger(caption, trigger), resolution
                )
            )
        except DataError as error:
            problems.append(str(error))
    if not captions and not problems:
        raise DataError(
            f"data.path {folder}: holds no pictures ({', '.join(PICTURE_SUFFIXES)}), nor do folders in it"
        )
    if problems:
        shown = "\n  ".join(problems[:_SHOWN_PROBLEMS])
        more = len(problems) - _SHOWN_PROBLEMS
        raise DataError(
            f"data.path {folder}: {len(problems)} problem{'s' * (len(problems) > 1)}\n  {shown}"
            + (f"\n  and {more} more" if more > 0 else "")
        )
    return pictures


def with_trigger(text: str, trigger: str | None) -> str:
    """`text`, led by the trigger unless it holds it already as a word: "pink" holds no "ink". Scripts without
    spaces between words may run on: "水墨画" holds "水墨"."""
    if not trigger:
        return text
    word = rf"(?<!\w){re.escape(trigger.lower())}(?!\w)"
    return text if re.search(word, text.lower(), re.ASCII) else f"{trigger} {text}"


def left_out(folder: Path) -> int:
    """How many pictures under `folder` its metadata file does not name; 0 where there is no such file."""
    metadata = next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)
    if metadata is None:
        return 0
    named = _captions_from_metadata(metadata, folder, [])
    return len(set(_picture_files(folder)) - named.keys())


def of_other_kinds(folder: Path) -> list[str]:
    """The names of pictures under `folder` in file types that are not looked for; none where a metadata file
    says which ones are meant."""
    if any((folder / name).is_file() for name in METADATA_FILES):
        return []
    return [path.relative_to(folder).as_posix() for path in _picture_files(folder, OTHER_PICTURE_SUFFIXES)]


def _picture_files(folder: Path, suffixes: tuple[str, ...] = PICTURE_SUFFIXES) -> list[Path]:
    """The pictures in `folder` and the folders in it, sorted, without hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _captions_beside(
    files: list[Path], suffix: str, default: str | None, folder: Path, problems: list[str]
) -> dict[Path, str]:
    """Picture -> caption from the file of the same name; what is wrong goes to `problems`."""
    captions = {}
    suffixes = CAPTION_SUFFIXES if suffix == "auto" else (suffix if suffix.startswith(".") else f".{suffix}",)
    stems = Counter(path.with_suffix("") for path in files)
    for path in files:
        name = path.relative_to(folder).as_posix()
        beside = [path.with_suffix(each) for each in suffixes if path.with_suffix(each).is_file()]
        if stems[path.with_suffix("")] > 1:
            problems.append(f"{name}: another picture has the same name but for the ending; rename one")
        elif len(beside) > 1:
            problems.append(f"{name}: has captions in {' and '.join(file.name for file in beside)}; keep one")
        elif beside:
            caption = _one_line(_text(beside[0], folder, problems))
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
        elif not _one_line(caption):
            problems.append(f"{place}: the caption of {name!r} is empty")
        else:
            captions[path] = _one_line(caption) or ""
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


def _one_line(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split())


def _read_picture(path: Path, name: str, caption: str, resolution: int) -> Picture:
    """Decode, check and crop one picture; raises DataError with the picture's name."""
    from PIL import Image as Images
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Images.DecompressionBombWarning)
            with Images.open(path) as opened:
                if getattr(opened, "n_frames", 1) > 1:
                    raise DataError(f"{name}: is animated; save one frame of it as a still picture")
                opened.load()
                upright = ImageOps.exif_transpose(opened)
                picture = _on_white(upright)
    except (Images.DecompressionBombError, Images.DecompressionBombWarning) as error:
        raise DataError(f"{name}: is too large ({error}); make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{name}: is broken or no picture ({error})") from error
    shorter = min(picture.size)
    if shorter * MAX_ENLARGEMENT < resolution:
        raise DataError(
            f"{name}: {picture.width} x {picture.height} px is too small for a resolution of {resolution}; "
            f"its shorter side must be at least {round(resolution / MAX_ENLARGEMENT)} px"
        )
    cropped = ImageOps.fit(picture, (resolution, resolution), Images.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()
    return Picture(name, caption, pixels, enlarged=shorter < resolution)


def _on_white(picture: Image) -> Image:
    """The picture in 8-bit RGB; where it is transparent, white shows."""
    from PIL import Image as Images

    if picture.mode.startswith(("I", "F")):  # 16-bit or wider grey: scale to 8 bits rather than clip
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if picture.mode.startswith("I") else max(1.0, float(values.max()))
        picture = Images.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Images.new("RGBA", rgba.size, "white")
        return Images.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")
