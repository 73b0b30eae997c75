"""Shapes that pictures are cut to, so that a batch is one tensor and little of a picture is lost.

Aspect-ratio buckets as NovelAI described them (2022, "NovelAI Improvements on Stable Diffusion"): shapes of
about the same area, whose sides are multiples of a step; a picture goes to the shape nearest to its own
aspect ratio, is resized until it just covers it, and what stands over is cropped. No picture is enlarged:
one that cannot cover its shape goes to a smaller one of its own, with its sides rounded down to the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Size(NamedTuple):
    """A height and a width in pixels, in the order of tensors."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"  # as people and picture programs say it

    @property
    def area(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Placement:
    """How a picture becomes the pixels that are learned from.

    Attributes:
        original: size of the upright picture.
        resized: its size after resizing, which covers `target`.
        target: what is cropped out of that.
        top, left: the corner of the crop within the resized picture.
    """

    original: Size
    resized: Size
    target: Size
    top: int
    left: int

    @property
    def enlarged(self) -> bool:
        return self.resized.height > self.original.height or self.resized.width > self.original.width

    @property
    def lost(self) -> float:
        """Share of the picture that the crop leaves out, in [0, 1)."""
        return 1 - self.target.area / self.resized.area

    def mirrored(self) -> Placement:
        """Where the same crop lies in the mirror image."""
        left = self.resized.width - self.target.width - self.left
        return Placement(self.original, self.resized, self.target, self.top, left)


def buckets(resolution: int, step: int, smallest: int, largest: int) -> tuple[Size, ...]:
    """The shapes for pictures of about resolution² pixels, sorted, the square among them.

    For each height the widest that keeps the area at or below resolution², and the same turned by 90 degrees.

    Args:
        resolution: side of the square of the same area.
        step: every side is a multiple of it.
        smallest, largest: bounds of every side; the square is there in any case.
    """
    side = resolution // step * step
    found = {Size(side, side)}
    low, high = -(-smallest // step) * step, largest // step * step
    for height in range(max(low, step), high + 1, step):
        width = min(high, resolution**2 // height // step * step)
        if width >= low:
            found |= {Size(height, width), Size(width, height)}
    return tuple(sorted(found))


def assign(size: Size, shapes: tuple[Size, ...], step: int, upscale: bool = False) -> Size:
    """The shape that a picture of `size` is cut to.

    Args:
        size: of the upright picture.
        shapes: what `buckets` gave.
        step: sides of shapes outside of `shapes` are multiples of it.
        upscale: whether a picture too small for its shape may be enlarged.

    Returns:
        A shape, with a side of 0 where the picture is smaller than a step.
    """
    nearest = min(shapes, key=lambda shape: (_aspect_error(size, shape), -shape.area))
    if upscale or _covers(size, nearest):
        return nearest
    return _own_shape(size, shapes, step)


def cover(original: Size, target: Size) -> Size:
    """The smallest size of the aspect ratio of `original`, up to rounding, that covers `target`."""
    scale = max(target.height / original.height, target.width / original.width)
    height, width = (round(side * scale) for side in original)
    return Size(max(height, target.height), max(width, target.width))


def place(original: Size, target: Size, generator: torch.Generator | None = None) -> Placement:
    """Resize to cover `target` and crop around the centre; anywhere, if there is a generator."""
    resized = cover(original, target)
    free = (resized.height - target.height, resized.width - target.width)
    if generator is None:
        top, left = (space // 2 for space in free)
    else:
        top, left = (int(torch.randint(space + 1, (), generator=generator)) for space in free)
    return Placement(original, resized, target, top, left)


def _own_shape(size: Size, shapes: tuple[Size, ...], step: int) -> Size:
    """The largest shape within `size` whose area and sides stay within those of `shapes`; very long pictures
    lose their ends."""
    area, longest = max(shape.area for shape in shapes), max(max(shape) for shape in shapes)
    height, width = (min(side, longest) // step * step for side in size)
    if height * width > area:
        longer = area // min(height, width) // step * step
        height, width = (longer, width) if height > width else (height, longer)
    return Size(height, width)


def _covers(size: Size, shape: Size) -> bool:
    return size.height >= shape.height and size.width >= shape.width


def _aspect_error(size: Size, shape: Size) -> float:
    """How far apart two aspect ratios are; the same for a picture and its turned image."""
    return abs(math.log(size.width / size.height) - math.log(shape.width / shape.height))
