"""The worst mistakes of a classifier as a sheet of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lorimer.tasks._checked_pictures import LabelledPicture
from lorimer.tasks._confusion import INK, MARGIN, PAPER, TEXT, shortened
from lorimer.tasks._fonts import font_for

if TYPE_CHECKING:
    from PIL.Image import Image

_COLUMNS, _MOST, _CELL = 4, 16, 192
_WRONG = (176, 32, 32)


@dataclass(frozen=True)
class Mistake:
    """place: of the picture; right, predicted: places of labels; probability: of the predicted one."""

    place: int
    right: int
    predicted: int
    probability: float


def worst_mistakes(logits: Tensor, right: Tensor) -> list[Mistake]:
    """The mistakes made most surely, the surest first; at most 16.

    Args:
        logits: (N, labels).
        right: (N,).
    """
    sure, predicted = logits.softmax(1).max(1)
    order = sure.argsort(descending=True, stable=True)
    wrong = order[predicted[order] != right[order]][:_MOST].tolist()
    return [Mistake(each, int(right[each]), int(predicted[each]), float(sure[each])) for each in wrong]


def draw_mistakes(
    mistakes: Sequence[Mistake], pictures: Sequence[LabelledPicture], names: Sequence[str], title: str
) -> Image:
    """A sheet of these pictures, each with its name, the label it has and the one that was predicted."""
    from PIL import Image as Images
    from PIL import ImageDraw, ImageOps

    shown = "".join([title, *names, *(pictures[mistake.place].name for mistake in mistakes)])
    font, small = font_for(TEXT, shown), font_for(TEXT - 3, shown)
    columns, rows = min(_COLUMNS, len(mistakes)), -(-len(mistakes) // _COLUMNS)
    head, foot = TEXT + 2 * MARGIN, 3 * TEXT + MARGIN
    width = max(columns * (_CELL + MARGIN) + MARGIN, int(font.getlength(title)) + 2 * MARGIN)
    sheet = Images.new("RGB", (width, head + rows * (_CELL + foot + MARGIN)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, font)
    for number, mistake in enumerate(mistakes):
        left = MARGIN + number % _COLUMNS * (_CELL + MARGIN)
        top = head + number // _COLUMNS * (_CELL + foot + MARGIN)
        picture = ImageOps.contain(pictures[mistake.place].open(), (_CELL, _CELL))
        sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2))
        draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), outline=(210, 210, 215))
        share = f" {mistake.probability:.0%}"
        predicted = shortened(names[mistake.predicted], _CELL - int(font.getlength(share)), font) + share
        lines = (
            (predicted, _WRONG, font),
            (shortened(f"is {names[mistake.right]}", _CELL, font), INK, font),
            (shortened(pictures[mistake.place].name, _CELL, small, begin=False), (110, 110, 120), small),
        )
        for line, (text, colour, used) in enumerate(lines):
            draw.text((left, top + _CELL + MARGIN // 4 + line * (TEXT + 2)), text, colour, used)
    return sheet
