"""Pictures varied at random, another way each epoch: mirrored, cut, turned, in other colours.

All draws are from torch's global generator, which is seeded of each example, so that a run can be resumed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from lorimer.tasks._base import Section
from lorimer.tasks._image_preparation import Preparation

if TYPE_CHECKING:
    from PIL.Image import Image

_RATIOS = (3 / 4, 4 / 3)
_TRIES = 10
_FINEST = 4  # times the side of what the model sees, before a part is taken of a padded picture


class Augmentation(Section):
    """How pictures to learn from are varied; as it stands, not at all. What must not change a label is for
    you to say: a mirrored b is a d."""

    flip: bool = False
    """Mirrored left to right, every second time."""
    crop: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """A part of the picture, of at least this share of its area and 3:4 to 4:3 of its proportions
    (arXiv 1409.4842); ImageNet's models are trained with 0.08, few pictures bear 0.5 and more."""
    colour: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Brightness, contrast and saturation, each times a factor of up to this much less or more than 1."""
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Turned by up to so many degrees; white shows at the corners."""

    @property
    def varies(self) -> bool:
        """Whether anything is asked for."""
        return self != type(self)()


def augmented(picture: Image, augmentation: Augmentation, preparation: Preparation) -> Tensor:
    """(3, height, width), float32: one variation of the picture, prepared."""
    from PIL import Image as Images

    if augmentation.rotation:
        angle = uniform(-augmentation.rotation, augmentation.rotation)
        picture = picture.rotate(angle, Images.Resampling.BILINEAR, fillcolor="white")
    if augmentation.crop is not None:
        geometry = preparation.geometry
        if geometry.fit == "pad":
            # No larger than that the smallest part is as fine as what the model sees.
            times = min(_FINEST, math.ceil(augmentation.crop**-0.5))
            picture = replace(geometry, height=times * geometry.height, width=times * geometry.width)(picture)
        box = random_box(picture.size, augmentation.crop, geometry.width / geometry.height)
        picture = picture.resize((geometry.width, geometry.height), geometry.resample, box)
    if augmentation.flip and uniform() < 0.5:
        picture = picture.transpose(Images.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.colour:
        picture = recoloured(picture, augmentation.colour)
    return preparation(picture) if augmentation.crop is None else preparation.values(picture)


def random_box(size: tuple[int, int], smallest: float, ratio: float) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a part of a picture of `size` (width, height) in pixels.

    Args:
        smallest: share of the picture's area, the largest being 1.
        ratio: width / height of what the part becomes; its own lies within 3:4 and 4:3 of it where that fits.
    """
    width, height = size
    for _ in range(_TRIES):
        area = width * height * uniform(smallest, 1.0)
        shape = ratio * math.exp(uniform(*map(math.log, _RATIOS)))
        wide, high = math.sqrt(area * shape), math.sqrt(area / shape)
        if wide <= width and high <= height:
            left, top = uniform(0.0, width - wide), uniform(0.0, height - high)
            return left, top, left + wide, top + high
    wide, high = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def recoloured(picture: Image, most: float) -> Image:
    """Brightness, contrast and saturation, each times a factor of up to `most` less or more than 1."""
    from PIL import ImageEnhance

    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = change(picture).enhance(uniform(1.0 - most, 1.0 + most))
    return picture


def uniform(low: float = 0.0, high: float = 1.0) -> float:
    """A number drawn between two."""
    return low + (high - low) * torch.rand(()).item()
