"""The few transforms of torchvision that diffusers' examples call, for machines that have no torchvision.

They prepare pictures, which takes no part in what is measured beyond a few milliseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class InterpolationMode(Enum):
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Compose:
    def __init__(self, steps: Sequence[Callable[[Any], Any]]) -> None:
        self.steps = steps

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value


class Lambda:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, value: Any) -> Any:
        return self.function(value)


class Resize:
    """The shorter side becomes `side`."""

    def __init__(self, side: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.side, self.filter = side, Image.Resampling[interpolation.name]

    def __call__(self, picture: Image.Image) -> Image.Image:
        scale = self.side / min(picture.size)
        return picture.resize((round(picture.width * scale), round(picture.height * scale)), self.filter)


class CenterCrop:
    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, picture: Image.Image) -> Image.Image:
        left, top = (picture.width - self.side) // 2, (picture.height - self.side) // 2
        return picture.crop((left, top, left + self.side, top + self.side))


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        flipped = torch.rand(()).item() < self.p
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else picture


class ToTensor:
    def __call__(self, picture: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


class Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std


def crop(picture: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return picture.crop((left, top, left + width, top + height))


def install() -> None:
    """Make `torchvision.transforms` importable, unless the real one is. Libraries that ask for it come first,
    so that they go on without."""
    import datasets  # noqa: F401
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    try:
        import torchvision  # noqa: F401
    except ImportError:
        package, transforms, functional = (
            ModuleType(name)
            for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        )
        for each in (
            InterpolationMode,
            Compose,
            Lambda,
            Resize,
            CenterCrop,
            RandomHorizontalFlip,
            ToTensor,
            Normalize,
        ):
            setattr(transforms, each.__name__, each)
        transforms.RandomCrop = CenterCrop  # type: ignore[attr-defined]  # pictures have the side already
        functional.crop = crop  # type: ignore[attr-defined]
        package.transforms, transforms.functional = transforms, functional  # type: ignore[attr-defined]
        for module in (package, transforms, functional):
            sys.modules[module.__name__] = module
