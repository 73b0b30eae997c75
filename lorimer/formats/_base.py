"""What a file format is: three functions between a path and an `AdapterState`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from lorimer.adapters._state import AdapterState
from lorimer.formats._dialects import as_read_back


class Format(ABC):
    """One file format. Stateless; every method is a static one."""

    name: ClassVar[str]
    description: ClassVar[str]  # one line for `lorimer convert --help`
    folder: ClassVar[bool] = False  # writes a folder rather than a file
    suffix: ClassVar[str] = ".safetensors"  # of the files that it writes
    dialect: ClassVar[str | None] = None  # whose names and shapes it keeps; None: each method's own, exactly

    @staticmethod
    @abstractmethod
    def detect(path: Path) -> bool:
        """Whether `path` looks like this format. Reads a header at most; never raises on foreign bytes."""

    @staticmethod
    @abstractmethod
    def read(path: Path) -> AdapterState:
        """The adapter in `path`.

        Raises:
            FileFormatError: broken, incomplete or hostile; every key that was not understood is listed.
        """

    @classmethod
    def read_for(cls, path: Path, family: str) -> AdapterState:
        """`read`, for a family of picture models that the caller names. Formats that name layers as a family
        does read by it."""
        state = cls.read(path)
        state.metadata["family"] = family
        return state

    @classmethod
    def kept(cls, state: AdapterState) -> AdapterState:
        """What reading gives back of `state` once written: the same update of every layer.

        Raises:
            FileFormatError: this format cannot hold that state.
        """
        return as_read_back(state, cls.dialect, cls.name)

    @staticmethod
    @abstractmethod
    def write(state: AdapterState, path: Path) -> None:
        """Write `state` to `path`, whole or not at all.

        Raises:
            FileFormatError: this format cannot hold that state; the message names one that can.
        """
