"""From an upright RGB picture to what a classifier sees of it: size, cut, and values.

A model of transformers brings a processor, which decides; others say side, mean and standard deviation. What
a recipe says of size, fit or values counts before either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lorimer.errors import FileFormatError

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "pad", "stretch"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers of its filters

_LONG = 20  # times as long as wide: enlarged as a whole, such a picture would fill the memory


@dataclass(frozen=True)
class Asked:
    """What a recipe says of how pictures are prepared; None leaves it to the model.

    Attributes:
        size: side of the square, in pixels.
        fit: how a picture that is no square becomes one.
        mean, std: of each channel, of values from 0 to 1.
    """

    size: int | None = None
    fit: Fit | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def read(cls, text: str) -> Asked:
        """As `str` wrote it."""
        told: Any = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(text).items()
        }
        return cls(**told)

    def __str__(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class Geometry:
    """How a picture comes to its size.

    Attributes:
        height, width: in pixels.
        fit: "crop" cuts out the middle, "pad" puts white around, "stretch" changes the proportions.
        share: of the shorter side, how much "crop" keeps.
        resample: Pillow's number of the filter.
    """

    height: int
    width: int
    fit: Fit = "crop"
    share: float = 1.0
    resample: int = BICUBIC

    def __call__(self, picture: Image) -> Image:
        """The picture at `height` x `width`."""
        if self.fit == "stretch":
            return picture.resize((self.width, self.height), self.resample)
        if self.fit == "pad":
            return self._padded(picture)
        wide, high = round(self.width / self.share), round(self.height / self.share)
        scale = max(wide / picture.width, high / picture.height)
        wide, high = max(wide, int(picture.width * scale)), max(high, int(picture.height * scale))
        left, top = round((wide - self.width) / 2), round((high - self.height) / 2)
        cut = (left, top, left + self.width, top + self.height)
        if max(picture.size) <= _LONG * min(picture.size):
            return picture.resize((wide, high), self.resample).crop(cut)
        across, down = picture.width / wide, picture.height / high
        box = (cut[0] * across, cut[1] * down, cut[2] * across, cut[3] * down)
        return picture.resize((self.width, self.height), self.resample, box)

    def _padded(self, picture: Image) -> Image:
        from PIL import Image as Images

        scale = min(self.width / picture.width, self.height / picture.height)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        whole = Images.new("RGB", (self.width, self.height), "white")
        corner = (self.width - size[0]) // 2, (self.height - size[1]) // 2
        whole.paste(picture.resize(size, self.resample), corner)
        return whole


@dataclass(frozen=True)
class Preparation:
    """What is done to a picture before the network.

    Attributes:
        geometry: how it comes to its size.
        values: a picture of that size -> (3, height, width), float32.
        own: a picture -> the same, where the model's processor decides the geometry, too.
        facts: all of this in words, equal where it does the same.
    """

    geometry: Geometry
    values: Callable[[Image], Tensor]
    own: Callable[[Image], Tensor] | None
    facts: str

    def __call__(self, picture: Image) -> Tensor:
        """(3, height, width), float32."""
        return self.own(picture) if self.own is not None else self.values(self.geometry(picture))


@dataclass(frozen=True)
class Normalisation:
    """Values from 0 to 1, less their mean, by their standard deviation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, picture: Image) -> Tensor:
        values = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 255.0
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return ((values - mean) / std).contiguous()


@dataclass(frozen=True)
class ByProcessor:
    """transformers' image processor, with these options."""

    processor: Any
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, picture: Image) -> Tensor:
        values: Tensor = self.processor(images=picture, return_tensors="pt", **dict(self.options))[
            "pixel_values"
        ]
        return values[0]


def plain(
    asked: Asked,
    side: int = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    share: float = 0.875,
    resample: int = BICUBIC,
) -> Preparation:
    """For a network that was trained on squares of `side` pixels, of which `share` was seen at evaluation."""
    size, fit = asked.size or side, asked.fit or "crop"
    geometry = Geometry(size, size, fit, share if asked.fit is None else 1.0, resample)
    values = Normalisation(asked.mean or tuple(mean), asked.std or tuple(std))
    return Preparation(geometry, values, None, f"{geometry} {values}")


def of_processor(processor: Any, asked: Asked, name: str) -> Preparation:
    """As the processor of the model `name` does it, but for what is asked.

    Raises:
        FileFormatError: it does not give pixel values.
    """
    told = {"image_mean": asked.mean, "image_std": asked.std}
    options = tuple((key, list(value)) for key, value in told.items() if value is not None)
    own = ByProcessor(processor, options)
    values = ByProcessor(processor, (*options, ("do_resize", False), ("do_center_crop", False)))
    wide, tall = _size_of(own, name), _size_of(own, name, tall=True)
    height, width = wide if wide == tall else (min(wide),) * 2  # of the shorter side where nothing is cut
    resample = getattr(processor, "resample", None)
    resample = BILINEAR if resample is None else int(resample)
    geometry = Geometry(asked.size or height, asked.size or width, asked.fit or "crop", 1.0, resample)
    decides = asked.size is None and asked.fit is None and wide == tall
    facts = f"{processor.to_json_string()} {options} {'' if decides else geometry}"
    return Preparation(geometry, values, own if decides else None, facts)


def _size_of(own: ByProcessor, name: str, tall: bool = False) -> tuple[int, int]:
    """(height, width) of what comes out for a wide picture, or a tall one."""
    from PIL import Image as Images

    try:
        height, width = own(Images.new("RGB", (96, 128) if tall else (128, 96))).shape[-2:]
    except (KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"{name}: its processor does not prepare pictures: {error}") from error
    return height, width
