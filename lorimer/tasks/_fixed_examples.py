"""Examples that are the same in every epoch, and what is known of them behind a frozen prefix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from lorimer.layers.prefix import Prefix

States = tuple[Tensor, ...]


class FixedExamples(Dataset[dict[str, Any]]):
    """Examples as mappings. Once `states` is set, each also has "states": what the frozen beginning of the
    model gives for it, and then need not have what only that beginning reads.

    Attributes:
        keys: of each example what tells it from every other input of the same model; empty where examples
            are random, so that nothing of them can be kept.
        states: key -> what was recorded for it.
    """

    keys: tuple[str, ...] = ()
    states: Callable[[str], States] | None = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.states is None:
            return self.example(index)
        return {**self.known_example(index), "states": self.states(self.keys[index])}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def example(self, index: int) -> dict[str, Any]:
        """An example with all that the model reads."""

    def known_example(self, index: int) -> dict[str, Any]:
        """An example whose states are known: what is costly to read may be NaN of the right shape."""
        return self.example(index)


@contextmanager
def behind(prefix: Prefix | None, batch: Mapping[str, Any], size: int | None) -> Iterator[None]:
    """Within, the model begins where the "states" of a batch are, if it has such; `size` as for
    `Prefix.replayed`."""
    if prefix is None or "states" not in batch:
        yield
    else:
        with prefix.replayed(batch["states"], size):
            yield


def recorded_rows(prefix: Prefix | None, run: Callable[[], Any]) -> list[States]:
    """Of each example of a batch of one shape what the prefix gives for it in `run`."""
    assert prefix is not None
    return list(zip(*(tensor.unbind() for tensor in prefix.record(run)), strict=True))


def stacked_states(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """ "states" for a batch of examples of one shape, where these are known: a tuple of (B, ...) tensors."""
    if "states" not in examples[0]:
        return {}
    return {"states": tuple(map(torch.stack, zip(*(each["states"] for each in examples), strict=True)))}
