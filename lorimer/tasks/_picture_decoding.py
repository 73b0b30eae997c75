"""From the bytes of a picture file to an upright RGB picture, and to a mask."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorimer.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# What Pillow's readers raise when a file's own numbers and tags are wrong.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, AttributeError,
    struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where the bytes of a file lie: a file of its own, or a stretch of an archive.

    Attributes:
        path: the file.
        offset: where in it they begin.
        length: how many they are; None for all up to the end.
    """

    path: Path
    offset: int = 0
    length: int | None = None

    def read(self, name: str) -> bytes:
        """The bytes.

        Raises:
            DataError: they cannot be read; calls them `name`.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(-1 if self.length is None else self.length)
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error


def decode(data: bytes, name: str) -> Image:
    """The picture in `data`, whole and upright by its EXIF orientation, in whatever mode it has.

    Raises:
        DataError: it is broken, animated, too large or no picture; calls it `name`.
    """
    from PIL import Image as Images
    from PIL import ImageOps, UnidentifiedImageError

    if not data:
        raise DataError(f"{name}: is empty; put the picture there anew, or remove it")
    try:
        with Images.open(io.BytesIO(data)) as opened:
            if Images.MAX_IMAGE_PIXELS and opened.width * opened.height > Images.MAX_IMAGE_PIXELS:
                raise Images.DecompressionBombError(f"{opened.width} x {opened.height} px")
            # In a phone's JPEG what follows the picture is a smaller one, or a map of its brightness.
            if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
                raise DataError(f"{name}: is animated; save one frame of it as a still picture")
            opened.load()
            return ImageOps.exif_transpose(opened)
    except (Images.DecompressionBombError, Images.DecompressionBombWarning) as error:
        raise DataError(f"{name}: is too large ({error}); make it smaller") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: is broken or no picture") from error
    except _BROKEN as error:
        raise DataError(f"{name}: is broken or no picture ({error})") from error


def has_alpha(picture: Image) -> bool:
    """Whether a picture may be transparent somewhere."""
    return "A" in picture.getbands() or "transparency" in picture.info


def on_white(picture: Image) -> Image:
    """The picture in 8-bit RGB; where it is transparent, white shows."""
    from PIL import Image as Images

    picture = _in_eight_bits(picture)
    if has_alpha(picture):
        rgba = picture.convert("RGBA")
        white = Images.new("RGBA", rgba.size, "white")
        return Images.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def under_alpha(picture: Image) -> Image:
    """The picture in 8-bit RGB with the colours that its file has where it is transparent: what a mask leaves
    out still surrounds what is learned, and white would put an edge there that no picture has."""
    return _in_eight_bits(picture).convert("RGBA").convert("RGB")


def alpha_of(picture: Image) -> Image:
    """The alpha channel as grey, white where the picture is opaque."""
    return _in_eight_bits(picture).convert("RGBA").getchannel("A")


def luminance_of(picture: Image) -> Image:
    """A mask from a file as grey; transparent is black, like what is not there."""
    from PIL import Image as Images

    rgba = _in_eight_bits(picture).convert("RGBA")
    return Images.alpha_composite(Images.new("RGBA", rgba.size, "black"), rgba).convert("L")


def _in_eight_bits(picture: Image) -> Image:
    """16-bit or wider grey scaled to 8 bits, which Pillow's own conversion would clip."""
    from PIL import Image as Images

    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture, dtype=np.float64)
    top = 65535.0 if picture.mode.startswith("I") else max(1.0, float(values.max()))
    return Images.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))
