"""The base pictures drawn otherwise, by rule: in flat colours, or as a pencil drawing.

A model that knows two styles and nothing beside them repeats them, and an adapter has no direction to push it
in. These variants, asked for by a word of their own ("pencil 3d red apple"), give it a repertoire: that a
thing can stay itself and be drawn in lines or in plain areas. They are made from the base pictures alone; no
picture in a style that adapters are to learn is among them, and none has both lines and colour.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from training.embedded_base import data

WORDS = ("flat", "pencil")


def draw(pixels: Tensor, word: str) -> Tensor:
    """uint8 pictures (n, 3, 64, 64) as that word asks."""
    return {"flat": flat, "pencil": pencil}[word](pixels)


def flat(pixels: Tensor) -> Tensor:
    """A handful of plain colours, each area smoothed."""
    drawn = []
    for picture in pixels:
        smooth = ndimage.median_filter(picture.permute(1, 2, 0).numpy(), size=(3, 3, 1))
        few = Image.fromarray(smooth).quantize(6, dither=Image.Dither.NONE).convert("RGB")
        drawn.append(data.to_tensor(few))
    return torch.stack(drawn)


def pencil(pixels: Tensor) -> Tensor:
    """The lines alone, on white."""
    return (255 * (1 - lines(pixels))).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def lines(pixels: Tensor) -> Tensor:
    """1 on the rim and on strong edges, 0 elsewhere, soft between: (n, 1, 64, 64)."""
    colours = pixels.float() / 255
    drawn = (colours.amin(dim=1) <= 0.9).numpy()
    shape = np.stack([ndimage.binary_fill_holes(picture) for picture in drawn])
    rim = shape & ~ndimage.binary_erosion(shape, np.ones((1, 3, 3)))
    smooth = functional.avg_pool2d(functional.pad(colours, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    down, across = smooth.diff(dim=2).abs().amax(dim=1), smooth.diff(dim=3).abs().amax(dim=1)
    edges = torch.maximum(functional.pad(down, (0, 0, 0, 1)), functional.pad(across, (0, 1))) > 0.16
    both = (torch.from_numpy(rim) | edges).float().unsqueeze(1)
    return functional.avg_pool2d(functional.pad(both, (1, 1, 1, 1)), 3, stride=1) * 0.4 + both * 0.6
