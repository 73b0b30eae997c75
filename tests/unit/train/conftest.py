"""Every test of the trainer starts without hooks, looks for requests at each step, and keeps threads few."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lorimer.train import control
from tests.unit.train import small


@pytest.fixture(autouse=True)
def quick_control(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(control, "_SECONDS_BETWEEN_LOOKS", 0.0)
    small.hook(None)
    yield
    small.hook(None)
