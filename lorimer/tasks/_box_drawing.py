"""Pictures with boxes drawn on them, legible at any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lorimer.tasks._fonts import font_for
from lorimer.tasks._grid import labelled_grid

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_SHORTEST = 480  # pixels of the longer side, to which smaller pictures are enlarged
_SHOWN = 480  # pixels of the longer side of a picture on a sheet
_MARGIN = 24
_PAPER, _INK = (255, 255, 255), (20, 20, 30)

# Colours that stay apart for most eyes, from Okabe and Ito's palette, and some more; then they repeat.
_COLOURS = (
    (230, 85, 13),
    (0, 114, 178),
    (0, 158, 115),
    (204, 60, 150),
    (240, 200, 0),
    (86, 180, 233),
    (148, 80, 200),
    (150, 90, 50),
    (120, 190, 30),
    (220, 30, 60),
)
Place = tuple[float, float, float, float]


@dataclass(frozen=True)
class Marks:
    """Boxes (N, 4) in a picture's pixels, labels (N,), and scores (N,) where they were found."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None


def colour_of(label: int) -> tuple[int, int, int]:
    """The colour of a class."""
    return _COLOURS[label % len(_COLOURS)]


def draw_boxes(picture: Image, marks: Marks, names: Sequence[str], side: int | None = None) -> Image:
    """The picture with boxes in their classes' colours, and tags that say the class and the score wherever
    there is room: a tag lies on no other tag, and where it would it is left out.

    Args:
        side: pixels of the longer side of what is drawn; None: the picture's own, but no fewer than 480.
    """
    from PIL import Image as Images
    from PIL import ImageDraw

    factor = (side or max(max(picture.size), _SHORTEST)) / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    drawn = picture.convert("RGB")
    drawn = drawn.copy() if size == picture.size else drawn.resize(size, Images.Resampling.BICUBIC)
    draw = ImageDraw.Draw(drawn)
    line = max(2, round(max(size) / 320))
    font = font_for(max(12, round(max(size) / 48)), "".join(names))
    boxes = (marks.boxes * factor).tolist()
    for box, label in zip(boxes, marks.labels.tolist(), strict=True):
        draw.rectangle(_in_order(box), outline=colour_of(label), width=line)
    taken: list[Place] = []
    for number, (box, label) in enumerate(zip(boxes, marks.labels.tolist(), strict=True)):
        score = "" if marks.scores is None else f"{float(marks.scores[number]):.0%}"
        for text in dict.fromkeys((f"{names[label]} {score}".strip(), score)):
            if text and _tag(draw, text, box, size, taken, label, font):
                break
    return drawn


def _tag(
    draw: ImageDraw,
    text: str,
    box: list[float],
    size: tuple[int, int],
    taken: list[Place],
    label: int,
    font: object,
) -> bool:
    """Write a tag above a box, inside its top, below it or inside its bottom; False where none is free."""
    width, height = draw.textlength(text, font) + 6, float(getattr(font, "size", 12)) + 4  # type: ignore[arg-type]
    left = min(max(box[0], 0.0), max(size[0] - width, 0.0))
    for top in (box[1] - height, box[1], box[3], box[3] - height):
        place = (left, top, left + width, top + height)
        if top < 0 or top + height > size[1] or any(_overlap(place, other) for other in taken):
            continue
        colour = colour_of(label)
        draw.rectangle(place, fill=colour)
        draw.text((left + 3, top + 1), text, _ink_on(colour), font)  # type: ignore[arg-type]
        taken.append(place)
        return True
    return False


def legend(names: Sequence[str], labels: Sequence[int], width: int) -> Image:
    """A strip of the classes' colours and names, in as many lines as `width` makes needful."""
    from PIL import Image as Images
    from PIL import ImageDraw

    font = font_for(16, "".join(names))
    places, x, y = [], _MARGIN, 0
    for label in labels:
        length = 24 + round(font.getlength(names[label])) + 16
        if x + length > width and x > _MARGIN:
            x, y = _MARGIN, y + 24
        places.append((label, x, y))
        x += length
    strip = Images.new("RGB", (width, y + 24 + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(strip)
    for label, left, top in places:
        draw.rectangle((left, top + 2, left + 16, top + 18), fill=colour_of(label))
        draw.text((left + 24, top), names[label], _INK, font)
    return strip


def comparison(rows: Sequence[tuple[Image, Marks, Marks]], names: Sequence[str], title: str) -> Image:
    """A sheet of pictures, each with what is there on the left and what was found on the right.

    Args:
        rows: (picture, what is there, what was found).
    """
    drawn = [draw_boxes(picture, marks, names, _SHOWN) for picture, *both in rows for marks in both]
    width = 4 if len(rows) > 2 else 2
    lines = [drawn[begin : begin + width] for begin in range(0, len(drawn), width)]
    sheet = labelled_grid(lines, [""] * len(lines), ["there", "found"] * (width // 2), title)
    labels = sorted({label for _, *both in rows for marks in both for label in marks.labels.tolist()})
    return _above(sheet, legend(names, labels, sheet.width)) if labels else sheet


def _above(first: Image, second: Image) -> Image:
    """One picture above another of the same width."""
    from PIL import Image as Images

    both = Images.new("RGB", (first.width, first.height + second.height), _PAPER)
    both.paste(first, (0, 0))
    both.paste(second, (0, first.height))
    return both


def _in_order(box: list[float]) -> Place:
    return min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])


def _overlap(one: Place, other: Place) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ink_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = colour
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else _PAPER
