"""The font for a text in a drawing. Pillow ships a Latin one; for other letters what is installed is used."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

_INSTALLED = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "SourceHanSansCN-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "PingFang.ttc",
)
_NO_LETTER = "\U0010fffd"  # fonts draw for it what they draw for letters that they lack


def font_for(size: int, text: str = "") -> FreeTypeFont | ImageFont:
    """The font of `size` pixels that has the most letters of `text`, Pillow's own rather than others."""
    return _loaded(_with_most("".join(sorted(set(text)))), size)


@cache
def _with_most(letters: str) -> str:
    """The file of the font that has the most of these; empty for Pillow's own."""
    if letters.isascii():
        return ""
    best, most = "", _count("", letters)
    for file in (*_of_matplotlib(), *_INSTALLED):
        if most < len(letters) and (count := _count(file, letters)) > most:
            best, most = file, count
    return best


def _count(file: str, letters: str) -> int:
    """How many of these letters a font has; none where it is not installed."""
    try:
        found = _loaded(file, 16)
    except OSError:
        return 0
    lacking = bytes(found.getmask(_NO_LETTER))
    return sum(letter.isspace() or bytes(found.getmask(letter)) != lacking for letter in letters)


def _of_matplotlib() -> tuple[str, ...]:
    """The font that matplotlib brings, where that is installed."""
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        return ()
    return (str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"),)


@cache
def _loaded(file: str, size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
