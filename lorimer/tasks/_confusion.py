"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorimer.tasks._fonts import font_for

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN, TEXT = 16, 16
INK, PAPER = (20, 20, 30), (255, 255, 255)

_WIDE, _NARROW, _FINE = 72, 40, 20  # sides of a cell that has count and share, a count, a colour
_FEW, _SOME, _MOST = 10, 30, 60  # labels up to which cells are so
_WIDEST = 150  # a cell of few labels, whose names then lie
_LONGEST = 220  # a name, in pixels
_DEEP = (31, 92, 168)  # the colour of a cell that has all of its row


def title_of(matrix: Tensor, run: str, step: int) -> str:
    """What stands above pictures of how well a run does."""
    count = int(matrix.sum())
    return f"{run}, after {step} steps: {matrix.diag().sum().item() / count:.1%} of {count:,} right"


def save_confusion(matrix: Tensor, names: Sequence[str], run: str, step: int, folder: Path) -> Path:
    """The matrix as a picture in `folder`, which is made where there is none; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"confusion-{step:06d}.png"
    draw_confusion(matrix, names, title_of(matrix, run, step)).save(path)
    return path


def draw_confusion(matrix: Tensor, names: Sequence[str], title: str) -> Image:
    """(labels, labels) counts, a row for each right label, a column for each predicted one. A cell is as deep
    in colour as its share of the row. Of more than 60 labels those are shown that are most in error."""
    from PIL import Image, ImageDraw

    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    if len(names) > _MOST:
        title += f"; the {_MOST} of {len(names):,} labels most in error"
        places = _most_in_error(matrix)
        matrix, shares = matrix[places][:, places], shares[places][:, places]
        names = [names[place] for place in places.tolist()]
    cell = _WIDE if len(names) <= _FEW else _NARROW if len(names) <= _SOME else _FINE
    font = font_for(TEXT, "".join([title, *names]))
    small = font_for(TEXT if cell == _WIDE else TEXT - 4)
    shown = [shortened(name, _LONGEST, font) for name in names]
    longest = max(int(font.getlength(name)) for name in shown)
    wide = min(max(cell, longest + MARGIN), _WIDEST) if cell == _WIDE else cell
    upright = longest > wide - MARGIN // 2  # names of columns stand on end
    corner = "right \\ predicted"
    left = max(longest, int(font.getlength(corner))) + 2 * MARGIN
    top = 2 * MARGIN + TEXT + (longest if upright else TEXT) + MARGIN
    right = max(left + wide * len(names), int(font.getlength(title)) + MARGIN) + MARGIN
    picture = Image.new("RGB", (right, top + cell * len(names) + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, INK, font)
    draw.text((MARGIN, top - MARGIN // 2), corner, INK, font, anchor="ls")
    for row, name in enumerate(shown):
        draw.text((MARGIN, top + cell * row + cell // 2), name, INK, font, anchor="lm")
        middle = left + wide * row + wide // 2
        if upright:
            _write_upright(picture, name, middle, top - MARGIN // 2, font)
        else:
            draw.text((middle, top - MARGIN // 2), name, INK, font, anchor="ms")
        for column in range(len(names)):
            share = float(shares[row, column])
            box = (left + wide * column, top + cell * row)
            draw.rectangle((*box, box[0] + wide - 2, box[1] + cell - 2), _shade(share))
            text = _in_cell(int(matrix[row, column]), share, cell)
            colour = PAPER if share > 0.5 else INK
            centre = (box[0] + wide // 2 - 1, box[1] + cell // 2 - 1)
            draw.multiline_text(centre, text, colour, small, anchor="mm", align="center")
    return picture


def shortened(text: str, width: int, font: Any, begin: bool = True) -> str:
    """The text if it is no wider than `width` pixels, else its beginning, or its end, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1] if begin else text[1:]
    return f"{text.rstrip()}..." if begin else f"...{text.lstrip()}"


def _in_cell(count: int, share: float, cell: int) -> str:
    if cell == _WIDE:
        return f"{count:,}\n{share:.0%}"
    return str(count) if cell == _NARROW and count else ""


def _most_in_error(matrix: Tensor) -> Tensor:
    """Places of labels that are taken for others, or others for them, the most often, in order."""
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diag()
    return torch.argsort(wrong, descending=True, stable=True)[:_MOST].sort().values


def _write_upright(picture: Image, text: str, middle: int, bottom: int, font: Any) -> None:
    """Text that is read from below, ending at `bottom`, about the column `middle`."""
    from PIL import Image, ImageDraw

    line = Image.new("RGB", (max(1, round(font.getlength(text))), TEXT + 4), PAPER)
    ImageDraw.Draw(line).text((0, 2), text, INK, font)
    turned = line.rotate(90, expand=True)
    picture.paste(turned, (middle - turned.width // 2, bottom - turned.height))


def _shade(share: float) -> tuple[int, int, int]:
    first, second, third = (
        round(light + (deep - light) * share) for light, deep in zip((238, 242, 248), _DEEP, strict=True)
    )
    return first, second, third
