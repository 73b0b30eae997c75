"""Requests to a run that goes on: files in `control/`, and the signals of a terminal or a scheduler.

    control/stop  control/checkpoint  control/preview      an empty file asks; it is removed when done
    Ctrl-C, SIGTERM                                         the same as stop; Ctrl-C twice ends at once

Only the names count; nothing is read from the files.
"""

from __future__ import annotations

import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal, get_args

Request = Literal["stop", "checkpoint", "preview"]
_SECONDS_BETWEEN_LOOKS = 0.25  # looking costs little on a disk of one's own, but more on a network's


class Control:
    """What was asked of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reason = ""  # what asked to stop
        self._signalled = ""
        self._looked = 0.0

    def clear(self) -> None:
        """Drop requests that an earlier process did not come to."""
        for name in get_args(Request):
            self._take(name)

    def requests(self) -> set[Request]:
        """What was asked since the last call; looks into the folder a few times a second at most."""
        found: set[Request] = set()
        now = time.monotonic()
        if now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            found |= {name for name in get_args(Request) if self._take(name)}
        if "stop" in found:
            self.reason = "a stop file"
        if self._signalled:
            self.reason = self._signalled
            found.add("stop")
        return found

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within this context Ctrl-C and SIGTERM are requests to stop. Signals belong to the main thread;
        elsewhere they are left as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self._on_signal) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = signal.Signals(number).name

    def _take(self, name: str) -> bool:
        """Whether a plain file of that name is there; removes it. Links, folders and pipes are not ours."""
        path = self.folder / name
        try:
            plain = stat.S_ISREG(path.lstat().st_mode)
        except FileNotFoundError:
            return False
        if plain:
            path.unlink()
        return plain
