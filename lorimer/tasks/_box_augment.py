"""Random changes to a picture and its boxes together. Draws come from torch's global generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lorimer.tasks._base import Section
from lorimer.tasks._box_maths import areas, clip
from lorimer.tasks._image_augmentation import recoloured, uniform

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = (124, 116, 104)  # the mean of photographs
_SEAM = (0.35, 0.65)  # where the four pictures of a mosaic may meet, in shares


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Augment(Section):
    """How pictures to learn from are changed at random, boxes with them; held-out ones never are."""

    aliases: ClassVar[Mapping[str, str]] = {"hflip": "flip", "vflip": "vertical_flip"}

    flip: Share = 0.5
    """How often a picture is mirrored left to right; 0 where left and right mean something, as in writing."""
    vertical_flip: Share = 0.0
    """How often a picture is turned upside down, as microscopes and views from above allow."""
    zoom: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """How much larger or smaller things may become. What is too large is cut, round a random place; what is
    too small lies on grey."""
    visible: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """The least share of a box that a cut must leave; a box with less is dropped."""
    colour: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """How much brightness, contrast and saturation may change."""
    mosaic: Share = 0.0
    """How often four pictures are put into one, which shows many small things at once."""


@dataclass(frozen=True)
class Boxed:
    """An RGB picture with its boxes (N, 4) in pixels and labels (N,)."""

    picture: Image
    boxes: Tensor
    labels: Tensor


def augmented(one: Boxed, how: Augment, another: Callable[[], Boxed]) -> Boxed:
    """A picture changed at random.

    Args:
        another: draws a picture to put beside it in a mosaic.
    """
    if _chance(how.mosaic):
        one = _mosaic([one, another(), another(), another()], how.visible)
    if _chance(how.flip):
        one = mirrored(one)
    if _chance(how.vertical_flip):
        one = upside_down(one)
    if how.zoom:
        factor = math.exp(uniform(-1.0, 1.0) * math.log1p(how.zoom))
        one = zoomed(one, factor, uniform(0.0, 1.0), uniform(0.0, 1.0), how.visible)
    return replace(one, picture=recoloured(one.picture, how.colour)) if how.colour else one


def mirrored(one: Boxed) -> Boxed:
    """Left to right."""
    from PIL import Image as Images

    boxes = one.boxes.clone()
    boxes[:, 0::2] = one.picture.width - one.boxes[:, [2, 0]]
    return Boxed(one.picture.transpose(Images.Transpose.FLIP_LEFT_RIGHT), boxes, one.labels)


def upside_down(one: Boxed) -> Boxed:
    """Top to bottom."""
    from PIL import Image as Images

    boxes = one.boxes.clone()
    boxes[:, 1::2] = one.picture.height - one.boxes[:, [3, 1]]
    return Boxed(one.picture.transpose(Images.Transpose.FLIP_TOP_BOTTOM), boxes, one.labels)


def zoomed(one: Boxed, factor: float, across: float, down: float, visible: float) -> Boxed:
    """The window of a picture that is 1/factor as wide and high, with grey where it is larger than the
    picture. It is not scaled, since every picture is when it is prepared.

    Args:
        across, down: where the window is, from 0, at the left and top, to 1.
        visible: the least share of a box that must be in the window.
    """
    from PIL import Image as Images

    picture = one.picture
    width, height = (max(1, round(side / factor)) for side in picture.size)
    left, top = round((picture.width - width) * across), round((picture.height - height) * down)
    window = Images.new("RGB", (width, height), _GREY)
    window.paste(picture, (-left, -top))
    return _cut(window, one.boxes - torch.tensor([left, top, left, top]), one.labels, visible)


def _cut(picture: Image, boxes: Tensor, labels: Tensor, visible: float) -> Boxed:
    """Boxes cut to a picture, without those of which too little is left."""
    inside = clip(boxes, picture.width, picture.height)
    kept = areas(inside) >= visible * areas(boxes)
    return Boxed(picture, inside[kept], labels[kept])


def _mosaic(four: list[Boxed], visible: float) -> Boxed:
    """Four pictures around a random point of a canvas of the first one's size, each scaled into its
    quarter with its ratio kept, and touching that point."""
    from PIL import Image as Images

    canvas = Images.new("RGB", four[0].picture.size, _GREY)
    x, y = (round(side * uniform(*_SEAM)) for side in canvas.size)
    boxes, labels = [], []
    for place, each in enumerate(four):
        right, below = place % 2, place // 2
        room = (canvas.width - x if right else x, canvas.height - y if below else y)
        factor = min(room[0] / each.picture.width, room[1] / each.picture.height)
        width, height = (max(1, round(side * factor)) for side in each.picture.size)
        left, top = x if right else x - width, y if below else y - height
        canvas.paste(each.picture.resize((width, height), Images.Resampling.BILINEAR), (left, top))
        scale = torch.tensor([width / each.picture.width, height / each.picture.height] * 2)
        boxes.append(each.boxes * scale + torch.tensor([left, top, left, top]))
        labels.append(each.labels)
    return _cut(canvas, torch.cat(boxes), torch.cat(labels), visible)


def _chance(probability: float) -> bool:
    return probability > 0.0 and torch.rand(()).item() < probability
