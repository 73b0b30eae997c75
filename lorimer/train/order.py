"""The order of the data: which examples a step reads is a pure function of (seed, step).

An epoch is a permutation of all examples, cut into steps of batch_size · accumulation · ranks examples,
each cut into micro-batches of batch_size. The last step of an epoch may be smaller. Micro-batch j goes
to rank j mod ranks, and its share of the step's gradient is its share of the step's examples, so that any
way to cut a step gives the gradient of one big batch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lorimer.train.seeding import number_of, seed_all

if TYPE_CHECKING:
    from lorimer.train.setup import Setup


@dataclass(frozen=True)
class MicroBatch:
    """One pass through the model.

    Attributes:
        number: its place in the step, over all ranks; random state is seeded with it.
        examples: indices into the data.
        share: how much of the step's examples these are, in (0, 1].
    """

    number: int
    examples: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Order:
    """The order in which `rank` of `ranks` processes reads `examples` examples."""

    examples: int
    batch_size: int
    accumulation: int
    seed: int
    rank: int = 0
    ranks: int = 1

    @property
    def examples_per_step(self) -> int:
        """Examples in a step over all ranks, but for the last step of an epoch."""
        return self.batch_size * self.accumulation * self.ranks

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.examples // self.examples_per_step)

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that `step` belongs to."""
        return step // self.steps_per_epoch

    def examples_in(self, step: int) -> int:
        """Examples that all ranks together read in `step`."""
        begin = step % self.steps_per_epoch * self.examples_per_step
        return min(self.examples_per_step, self.examples - begin)

    def step(self, step: int) -> list[MicroBatch]:
        """This rank's micro-batches in `step`; may be empty in the last step of an epoch."""
        begin = step % self.steps_per_epoch * self.examples_per_step
        chosen = _permutation(self.examples, self.seed, self.epoch(step))[
            begin : begin + self.examples_per_step
        ]
        pieces = chosen.split(self.batch_size)
        return [
            MicroBatch(number, tuple(piece.tolist()), len(piece) / len(chosen))
            for number, piece in enumerate(pieces)
            if number % self.ranks == self.rank
        ]

    def batches(self, first: int, end: int) -> Iterator[list[tuple[int, int]]]:
        """(epoch, example) pairs of every micro-batch from step `first` up to `end`; a batch sampler."""
        for step in range(first, end):
            for micro in self.step(step):
                yield [(self.epoch(step), example) for example in micro.examples]


class SeededExamples(Dataset[Any]):
    """A dataset addressed by (epoch, example): random draws inside it depend on these and the seed alone,
    whichever process reads them and in whatever order."""

    def __init__(self, data: Dataset[Any], seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, example = place
        seed_all(self.seed, "example", epoch, example)
        return self.data[example]


def read_batches(setup: Setup, first: int, end: int) -> Iterator[Any]:
    """Every micro-batch of this process from step `first` up to `end`, collated."""
    return iter(
        DataLoader(
            SeededExamples(setup.data, setup.recipe.train.seed),
            batch_sampler=setup.order.batches(first, end),
            collate_fn=setup.task.collate,
            num_workers=setup.recipe.train.workers,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # else it would draw from the global one
            pin_memory=setup.accelerator.device.type == "cuda",
        )
    )


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the one that trains decides what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@lru_cache(maxsize=2)
def _permutation(examples: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(number_of(seed, "epoch", epoch))
    return torch.randperm(examples, generator=generator)
