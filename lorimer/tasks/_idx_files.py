"""IDX files, as MNIST and its successors come: a header of big-endian numbers, then bytes; gzipped or not.

Format: http://yann.lecun.com/exdb/mnist, "The IDX file format".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorimer.errors import DataError

_BYTES = 0x08  # the one type of values that pictures and labels have
_MAX_BYTES = 2**33


@dataclass(frozen=True)
class IdxPicture:
    """One picture of many, (height, width) or (height, width, 3), as a file in PGM or PPM."""

    values: NDArray[np.uint8]
    place: int

    def read(self, name: str) -> bytes:
        """The bytes of that file."""
        picture = self.values[self.place]
        kind = "P6" if picture.ndim == 3 else "P5"
        return f"{kind} {picture.shape[1]} {picture.shape[0]} 255\n".encode() + picture.tobytes()


def idx_files(folder: Path, prefixes: tuple[str, ...]) -> tuple[Path, Path] | None:
    """(pictures, labels) of a folder whose names begin with one of these, such as train-images-idx3-ubyte.gz;
    None where there are none.

    Raises:
        DataError: pictures without labels.
    """
    for file in sorted(folder.glob("*-images*idx*-ubyte*")):
        if file.name.startswith(prefixes) and file.is_file():
            stem = file.name.split("-images")[0]
            labels = [each for each in sorted(folder.glob(f"{stem}-labels*idx1-ubyte*")) if each.is_file()]
            if not labels:
                raise DataError(f"{file}: has no labels beside it; {stem}-labels-idx1-ubyte is missing")
            return file, labels[0]
    return None


def read_idx(file: Path) -> NDArray[np.uint8]:
    """What the file holds, in its shape.

    Raises:
        DataError: it is broken, or holds no bytes.
    """
    opened = gzip.open if _is_gzipped(file) else open
    try:
        with opened(file, "rb") as stream:
            zero, kind, dimensions = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
            count = math.prod(shape)
            if zero or kind != _BYTES or not 1 <= dimensions <= 4 or count > _MAX_BYTES:
                raise DataError(f"{file}: is no IDX file of bytes")
            data = stream.read(count + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{file}: is no whole IDX file: {error}") from error
    if len(data) != count:
        more = "more" if len(data) > count else "less"
        raise DataError(f"{file}: holds {more} than the {count} bytes that its header says")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _is_gzipped(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"
