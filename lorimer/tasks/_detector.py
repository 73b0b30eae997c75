"""What object detection asks of an architecture: how it sees a picture, its loss, and what it finds.

Boxes are (N, 4) float32 tensors of x0, y0, x1, y1 in pixels, of the prepared picture unless a name says
otherwise; labels are places among the detector's class names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorimer.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Truth:
    """What is to be found in one prepared picture: boxes (N, 4), labels (N,) long. N may be 0."""

    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Found:
    """What a detector found in one prepared picture, surest first: boxes (N, 4), scores (N,) in [0, 1],
    labels (N,) long."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Prepared:
    """A picture as a detector sees it.

    Attributes:
        pixels: (3, height, width), normalised; the same size for every picture of one detector.
        scale: (x, y) factors from the original's pixels to these.
        extent: (width, height) of the picture among these; what lies beside it is padding.
        offset: (x, y) where the original's corner lies among these, where it was padded.
    """

    pixels: Tensor
    scale: tuple[float, float]
    extent: tuple[int, int]
    offset: tuple[float, float] = (0.0, 0.0)

    @property
    def window(self) -> Tensor:
        """(4,) x0, y0, x1, y1 of the picture among these pixels."""
        (width, height), (left, top) = self.extent, self.offset
        return torch.tensor([left, top, left + width, top + height], dtype=torch.float32)

    def onto(self, boxes: Tensor) -> Tensor:
        """Boxes of the original as boxes of the prepared picture."""
        return boxes * boxes.new_tensor((*self.scale, *self.scale)) + boxes.new_tensor(
            (*self.offset, *self.offset)
        )

    def back(self, boxes: Tensor) -> Tensor:
        """Boxes of the prepared picture as boxes of the original."""
        return (boxes - boxes.new_tensor((*self.offset, *self.offset))) / boxes.new_tensor(
            (*self.scale, *self.scale)
        )


class Detector(ABC):
    """An architecture's ways, beside the network that is adapted.

    Attributes:
        network: the base in evaluation mode on the CPU.
        names: of its classes, in the order of its head, once new ones are there.
        new: paths of weights that the base's files lack, since classes are new; they are trained in full. A
            path may name rows of an old head, see `Task.full`.
    """

    network: nn.Module
    names: tuple[str, ...]
    new: dict[str, Sequence[int] | None]

    def fit_to(self, sizes: Sequence[tuple[int, int]], longest: int | None = None) -> None:
        """Told the (width, height) of the pictures to learn from before the first is prepared, and how long
        the longer side of a prepared one shall be, where the recipe says it: a detector may choose by them
        the size that it prepares all pictures in.

        Raises:
            UsageError: it has one size and no choice.
        """
        if longest is not None:
            raise UsageError("this detector sees all pictures in a size of its own")

    @abstractmethod
    def prepare(self, picture: Image) -> Prepared:
        """An upright RGB picture as the network wants it."""

    @abstractmethod
    def loss(
        self, model: nn.Module, pixels: Tensor, truths: Sequence[Truth], windows: Tensor | None = None
    ) -> Tensor:
        """The mean loss, a scalar, of a batch (B, 3, height, width). `model` is `network`, adapted.

        Args:
            windows: (B, 4) where pictures lie, see `Prepared.window`; None: they fill their canvas.
        """

    @abstractmethod
    def find(
        self,
        model: nn.Module,
        pixels: Tensor,
        least: float = 0.05,
        most: int = 100,
        windows: Tensor | None = None,
    ) -> list[Found]:
        """What is in each picture of a batch: no more than `most` boxes, none less sure than `least`. They
        may reach into padding. `windows` as for `loss`."""

    def metadata(self) -> dict[str, str]:
        """Facts for the adapter's file that loading needs beside names."""
        return {}

    def restored(self, facts: Mapping[str, str]) -> Detector:
        """This detector, made as the one was whose `metadata` a file has."""
        return self

    def preparation(self) -> str:
        """Everything that prepared pixels depend on beside the picture."""
        return f"{type(self).__name__} {self.metadata()}"

    def describe(self) -> list[str]:
        """Lines for the preflight: how pictures are prepared."""
        return []
