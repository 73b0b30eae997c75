"""One picture to learn from. Its pixels stay on disk until they are asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from lorimer.errors import DataError
from lorimer.tasks._picture_buckets import Placement, Size
from lorimer.tasks._picture_captions import CaptionOptions, caption_variants, with_trigger
from lorimer.tasks._picture_decoding import Stored, alpha_of, decode, luminance_of, on_white, under_alpha
from lorimer.tasks._picture_duplicates import Likeness

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """One picture as it is learned: one crop of a file, or the mirror image of that.

    Attributes:
        name: its path within its source, with forward slashes; behind the source's, if there are several.
        text: its caption as written, in one line.
        captions: how that is varied.
        stored, digest: where its bytes lie, and their SHA-256 when they were checked.
        likeness: what it is compared with others by.
        placement: how it is resized and cropped.
        mirrored: whether it is turned left to right after that.
        masked: where its mask is: in the alpha channel, in another file, or nowhere.
        mask_background: weight of what the mask leaves out.
        source: place of its source in the recipe.
        is_regularisation: it shows the class, not what is to be learned.
        loss_weight: its loss counts so many times.
        repeats: draws in an epoch, relative to others of the same source.
    """

    name: str
    text: str
    captions: CaptionOptions
    stored: Stored
    digest: bytes
    likeness: Likeness
    placement: Placement
    mirrored: bool = False
    masked: Literal["alpha"] | Stored | None = None
    mask_background: float = 0.0
    source: int = 0
    is_regularisation: bool = False
    loss_weight: float = 1.0
    repeats: int = 1

    @property
    def caption(self) -> str:
        """The caption with the trigger word, not varied."""
        return with_trigger(self.text, self.captions.trigger)

    def variants(self, seed: int, count: int) -> list[str]:
        """`count` forms of the caption with tags shuffled and dropped; one where nothing varies."""
        return caption_variants(self.text, self.captions, seed, count)

    @property
    def size(self) -> Size:
        """Height and width of its pixels."""
        return self.placement.target

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """What SDXL is told of it (arXiv 2307.01952, section 2.2): original height and width, the crop's top
        and left, height and width."""
        place = self.placement.mirrored() if self.mirrored else self.placement
        return (*place.original, place.top, place.left, *place.target)

    @property
    def enlarged(self) -> bool:
        """Whether the file has fewer pixels than are learned from."""
        return self.placement.enlarged

    @property
    def content(self) -> bytes:
        """What its pixels follow from, known without decoding it again."""
        return self.likeness.digest + f"{self.placement} {self.mirrored}".encode()

    @property
    def pixels(self) -> Tensor:
        """(3, height, width), uint8; read, decoded, resized (Lanczos) and cropped at every call.

        Raises:
            DataError: the file is gone or has changed since it was checked.
        """
        from PIL import Image as Images

        upright = self._decoded(self.stored)
        picture = under_alpha(upright) if self.masked == "alpha" else on_white(upright)
        values = self._placed(picture, Images.Resampling.LANCZOS)
        return values.permute(2, 0, 1).contiguous()

    @property
    def mask(self) -> Tensor | None:
        """(height, width), float32 in [0, 1]: the weight of each pixel; None without a mask.

        Raises:
            DataError: the file is gone or has changed since it was checked.
        """
        from PIL import Image as Images

        if self.masked is None:
            return None
        if self.masked == "alpha":
            grey = alpha_of(self._decoded(self.stored))
        else:
            name = f"mask of {self.name}"
            grey = luminance_of(decode(self.masked.read(name), name))
        values = self._placed(grey, Images.Resampling.BILINEAR).float() / 255
        return self.mask_background + (1 - self.mask_background) * values

    def as_mirrored(self) -> Picture:
        """Its mirror image."""
        return replace(self, mirrored=not self.mirrored)

    def _decoded(self, stored: Stored) -> Image:
        data = stored.read(self.name)
        if hashlib.sha256(data).digest() != self.digest:
            raise DataError(f"{self.name}: has changed since it was checked; begin again")
        return decode(data, self.name)

    def _placed(self, picture: Image, resampling: int) -> Tensor:
        place = self.placement
        resized = picture.resize((place.resized.width, place.resized.height), resampling)
        right, bottom = place.left + place.target.width, place.top + place.target.height
        values = torch.from_numpy(np.array(resized.crop((place.left, place.top, right, bottom))))
        return values.flip(1) if self.mirrored else values
