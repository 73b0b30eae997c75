"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_CELL, _MARGIN, _SIZE = 72, 16, 16
_INK, _PAPER = (20, 20, 30), (255, 255, 255)
_DEEP = (31, 92, 168)  # the colour of a cell that has all of its row


def draw_confusion(matrix: Tensor, names: Sequence[str], title: str) -> Image:
    """(labels, labels) counts, a row for each right label, a column for each predicted one. A cell is as deep
    in colour as its share of the row."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_SIZE)
    left = max(int(font.getlength(name)) for name in [*names, "right"]) + 2 * _MARGIN
    cell = max(_CELL, left - _MARGIN)
    top = 3 * _SIZE + 3 * _MARGIN
    width = max(left + cell * len(names), int(font.getlength(title)) + _MARGIN) + _MARGIN
    picture = Image.new("RGB", (width, top + _CELL * len(names) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN), title, _INK, font)
    draw.text((_MARGIN, top - _SIZE - _MARGIN // 2), "right \\ predicted", _INK, font)
    for row, name in enumerate(names):
        draw.text((_MARGIN, top + _CELL * row + (_CELL - _SIZE) // 2), name, _INK, font)
        middle = left + cell * row + cell // 2
        draw.text((middle, top - 2 * _SIZE - _MARGIN), name, _INK, font, anchor="ma")
        for column in range(len(names)):
            count = int(matrix[row, column])
            share = count / max(int(matrix[row].sum()), 1)
            box = (left + cell * column, top + _CELL * row)
            draw.rectangle((*box, box[0] + cell - 2, box[1] + _CELL - 2), _shade(share))
            colour = _PAPER if share > 0.5 else _INK
            text = f"{count:,}\n{share:.0%}"
            centre = (box[0] + cell // 2, box[1] + _CELL // 2)
            draw.multiline_text(centre, text, colour, font, anchor="mm", align="center")
    return picture


def _shade(share: float) -> tuple[int, int, int]:
    first, second, third = (
        round(light + (deep - light) * share) for light, deep in zip((238, 242, 248), _DEEP, strict=True)
    )
    return first, second, third
