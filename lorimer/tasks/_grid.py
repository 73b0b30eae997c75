"""Pictures side by side in one labelled picture, readable also where each is 64 pixels small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorimer.tasks._fonts import font_for

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

CELL = 192  # smaller pictures are enlarged to about this many pixels a side
_GAP = 12
_MARGIN = 24
_TEXT = 18
_TITLE = 24
_LABEL_WIDTH = 240  # widest a row label gets before it is wrapped
_INK, _PAPER, _FAINT = "#1b1b1f", "#ffffff", "#5f5f68"


def labelled_grid(
    rows: Sequence[Sequence[Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str | None = None,
) -> Image:
    """One picture of all `rows`, each with its label on the left and the columns' labels on top.

    Args:
        rows: rows of pictures; a row may be shorter than the others. Pictures smaller than about 192 pixels
            are enlarged by a whole factor.
        row_labels, column_labels: one for each row and for each column; long row labels are wrapped.
        title: a line above it all.
    """
    from PIL import Image as Images
    from PIL import ImageDraw

    everything = "".join([*row_labels, *column_labels, title or ""])
    font, title_font = font_for(_TEXT, everything), font_for(_TITLE, everything)
    labels = [_wrapped(label, font) for label in row_labels]
    label_width = max((_width(line, font) for lines in labels for line in lines), default=0)
    cells = [[_enlarged(picture) for picture in row] for row in rows]
    cell_width = max((cell.width for row in cells for cell in row), default=CELL)
    cell_height = max((cell.height for row in cells for cell in row), default=CELL)
    heads = [_wrapped(label, font, cell_width) for label in column_labels]
    line_height = _TEXT + 6
    head_height = line_height * max((len(lines) for lines in heads), default=0)

    left = _MARGIN + (label_width + _GAP if label_width else 0)
    top = _MARGIN + (_TITLE + _MARGIN if title else 0) + (head_height + _GAP if head_height else 0)
    columns = max([len(column_labels), *map(len, cells)])
    width = left + columns * (cell_width + _GAP) - _GAP + _MARGIN
    width = max(width, 2 * _MARGIN + (_width(title, title_font) if title else 0))
    height = top + len(cells) * (cell_height + _GAP) - _GAP + _MARGIN
    sheet = Images.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)

    if title:
        draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=title_font)
    for column, lines in enumerate(heads):
        centre = left + column * (cell_width + _GAP) + cell_width / 2
        for number, line in enumerate(lines):
            y = top - _GAP - head_height + number * line_height
            draw.text((centre, y), line, fill=_FAINT, font=font, anchor="ma")
    for row, (lines, pictures) in enumerate(zip(labels, cells, strict=True)):
        y = top + row * (cell_height + _GAP)
        for number, line in enumerate(lines):
            middle = y + cell_height / 2 + (number - len(lines) / 2) * line_height
            draw.text((_MARGIN, middle), line, fill=_INK, font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (left + column * (cell_width + _GAP), y))
    return sheet


def _enlarged(picture: Image) -> Image:
    from PIL import Image as Images

    factor = max(1, round(CELL / max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Images.Resampling.BICUBIC)


def _wrapped(text: str, font: FreeTypeFont | ImageFont, width: int = _LABEL_WIDTH) -> list[str]:
    """`text` in lines of at most `width` pixels, broken at spaces, or inside a word that is wider."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if _width(joined, font) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if _width(lines[-1] + letter, font) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _width(text: str, font: FreeTypeFont | ImageFont) -> int:
    return round(font.getlength(text))
