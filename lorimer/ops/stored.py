"""A model in its files, as operations need it that never hold a whole model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lorimer.errors import FileFormatError
from lorimer.formats.safe_io import WeightFile, open_safetensors

if TYPE_CHECKING:
    from lorimer.families._layout import Held

Contents = Mapping[str, "tuple[Held, ...]"]


@dataclass(frozen=True)
class StoredModel:
    """See the module.

    Attributes:
        label: what messages call it.
        skeleton: the model on the meta device; it says what the layers are. Parameters of it that no file
            holds, and of files that it lacks, are allowed.
        contents: file -> key in it -> the parameters that the tensor holds, under their full names.
    """

    label: str
    skeleton: nn.Module
    contents: Mapping[Path, Contents]

    @contextmanager
    def opened(self) -> Iterator[dict[str, Callable[[], Tensor]]]:
        """Parameter's name -> how to read it.

        Raises:
            FileFormatError: a file is broken, or has a tensor of another shape than the model.
        """
        with ExitStack() as stack:
            getters: dict[str, Callable[[], Tensor]] = {}
            for path, contents in self.contents.items():
                file = stack.enter_context(open_safetensors(path))
                for key, all_held in contents.items():
                    getters |= {held.name: partial(read_held, file, key, held) for held in all_held}
            yield getters


def read_held(file: WeightFile, key: str, held: Held) -> Tensor:
    """A parameter out of an open file's tensor."""
    try:
        return held.read(file.read(key))
    except ValueError as error:
        raise FileFormatError(f"{file.path}: {key!r} {error}") from error
