"""Is a picture still the thing that was asked for? Retrieval among real pictures of all concepts.

Pictures are compared in a space where style matters little: gradient histograms, shape and coarse colour,
reduced by a linear discriminant analysis that was fitted on *other* concepts, each seen in several styles, so
that it keeps what tells concepts apart and drops what tells styles apart. A sample counts as kept when the
concept asked for is among the k nearest of all N; chance is k / N. Real pictures of the new style, asked
in the same way, show how far the measure can be trusted: they are its ceiling for a perfect adapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.quality.style import drawn_shape


@dataclass(frozen=True)
class ConceptSpace:
    """``gallery``: (style, concept, dimension), unit vectors of the real pictures to compare with."""

    projection: Projection
    gallery: Tensor

    def ranks(self, pixels: Tensor, concepts: Tensor) -> Tensor:
        """How many concepts are nearer than the one asked for, 0 being best: (n,)."""
        likeness = torch.einsum("nd,scd->nsc", self.projection(pixels), self.gallery).amax(dim=1)
        return (likeness > likeness.gather(1, concepts[:, None])).sum(dim=1)

    def kept(self, pixels: Tensor, concepts: Tensor) -> dict[str, float]:
        """The share of pictures whose concept is the nearest, or among the five or ten nearest."""
        ranks = self.ranks(pixels, concepts)
        return {f"top_{k}": (ranks < k).float().mean().item() for k in (1, 5, 10)}


@dataclass(frozen=True)
class Projection:
    """Features less ``mean``, times ``matrix`` (feature, dimension), as unit vectors."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (n, 3, 64, 64) to (n, dimension)."""
        return functional.normalize((features(pixels) - self.mean) @ self.matrix, dim=1)


def train(other_concepts: Tensor, gallery: Tensor, dimensions: int = 100) -> ConceptSpace:
    """Fit on other concepts in several styles, (style, concept, 3, h, w), shaped like ``gallery``."""
    rows = features(other_concepts.flatten(0, 1)).unflatten(0, other_concepts.shape[:2])
    projection = discriminant_analysis(rows, dimensions)
    vectors = projection(gallery.flatten(0, 1))
    return ConceptSpace(projection, vectors.unflatten(0, gallery.shape[:2]))


def discriminant_analysis(rows: Tensor, dimensions: int, shrinkage: float = 0.1) -> Projection:
    """Fisher's: the directions in which concepts differ most for how much styles differ within one.

    ``rows``: (style, concept, feature). The covariance within a concept is shrunk towards a multiple of the
    identity, and each style's own mean is taken off first.
    """
    centred_rows = (rows - rows.mean(dim=1, keepdim=True)).double()
    between = centred_rows.mean(dim=0)
    within = (centred_rows - between).flatten(0, 1)
    size = rows.shape[-1]
    covariance = within.T @ within / len(within)
    level = covariance.diagonal().mean()
    covariance = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(size)
    values, vectors = torch.linalg.eigh(covariance)
    whiten = vectors / values.sqrt()
    spread = between @ whiten
    _, _, directions = torch.linalg.svd(spread, full_matrices=False)
    matrix = whiten @ directions[:dimensions].T
    return Projection(rows.mean(dim=(0, 1)), matrix.float())


def features(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, 64, 64) to one row each: gradient directions, shape, and coarse colour."""
    colours = centred(pixels)
    shape = drawn_shape(colours)
    return torch.cat(
        [
            gradient_histogram(colours.mean(dim=1, keepdim=True)),
            gradient_histogram(shape),
            functional.avg_pool2d(shape, 4).flatten(1),
            1.5 * functional.avg_pool2d(hue_plane(colours), 8).flatten(1),
            3.0 * mean_hue(colours, shape),
        ],
        dim=1,
    )


def centred(pixels: Tensor, size: int = 64, fill: int = 56) -> Tensor:
    """Each drawing in the middle and at the same extent, 0..1: styles differ in their margins."""
    colours = pixels.float() / 255
    moved = []
    for picture, shape in zip(colours, colours.amin(dim=1) < 0.9, strict=True):
        rows, columns = shape.any(dim=1).nonzero(), shape.any(dim=0).nonzero()
        if len(rows) == 0:
            moved.append(picture)
            continue
        top, bottom = int(rows.min()), int(rows.max()) + 1
        left, right = int(columns.min()), int(columns.max()) + 1
        scale = fill / max(bottom - top, right - left)
        height, width = max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale))
        part = functional.interpolate(
            picture[None, :, top:bottom, left:right], (height, width), mode="bilinear", antialias=True
        )[0]
        canvas = torch.ones(3, size, size)
        down, across = (size - height) // 2, (size - width) // 2
        canvas[:, down : down + height, across : across + width] = part
        moved.append(canvas)
    return torch.stack(moved)


def gradient_histogram(planes: Tensor, cell: int = 8, directions: int = 8) -> Tensor:
    """Dalal and Triggs (2005): how strongly each cell changes in each direction, square-rooted and normed."""
    down = functional.pad(planes[..., 2:, :] - planes[..., :-2, :], (0, 0, 1, 1))
    across = functional.pad(planes[..., 2:] - planes[..., :-2], (1, 1))
    strength = (down.square() + across.square()).sqrt()
    angle = torch.atan2(down, across) % math.pi / math.pi * directions
    bins = torch.arange(directions).view(1, -1, 1, 1)
    distance = (angle - bins).abs()
    share = (1 - torch.minimum(distance, directions - distance)).clamp(min=0) * strength
    cells = functional.avg_pool2d(share, cell).flatten(1).clamp(min=0).sqrt()
    return functional.normalize(cells, dim=1) * 5


def hue_plane(colours: Tensor) -> Tensor:
    """Colour without brightness, as red against green and yellow against blue: (n, 2, h, w)."""
    red, green, blue = colours.unbind(dim=1)
    return torch.stack([red - green, (red + green) / 2 - blue], dim=1)


def mean_hue(colours: Tensor, shape: Tensor) -> Tensor:
    """The colour of what is drawn, on average: (n, 2)."""
    return (hue_plane(colours) * shape).sum(dim=(2, 3)) / shape.sum(dim=(2, 3)).clamp(min=1)
