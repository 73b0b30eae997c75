"""Random state as a function of where training stands, so that nothing needs to be saved to resume."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def number_of(*place: int | str) -> int:
    """A 64-bit number that depends on `place` alone; places that differ anywhere give unrelated ones."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "little")


def seed_all(*place: int | str) -> None:
    """Set torch's, NumPy's and Python's global generators from `place`, e.g. (seed, "step", 12, 0)."""
    number = number_of(*place)
    # torch.manual_seed would also queue a call, with its stack, for each device that is not in use yet.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Within this context anything may be seeded and drawn; afterwards the generators are as before."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
