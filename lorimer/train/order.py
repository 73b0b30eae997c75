"""The order of the data: which examples a step reads is a pure function of (seed, step).

An epoch is a permutation of all examples, cut into micro-batches of batch_size, of which accumulation ·
ranks make a step. The last step of an epoch may be smaller. Micro-batch j goes to rank j mod ranks, and its
share of the step's gradient is its share of the step's examples, so that any way to cut a step gives the
gradient of one big batch. Where a batch's loss is a mean over more than examples, such as tokens, the data
says how much each example counts.

Examples of several groups, such as pictures of several shapes, cannot be stacked: then each group's part of
the permutation is cut on its own, with a smaller last piece, and the pieces of all groups are shuffled.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
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
        share: how much of what the step's examples count these do, in (0, 1].
    """

    number: int
    examples: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Order:
    """The order in which `rank` of `ranks` processes reads `examples` examples.

    Attributes:
        groups: of each example; a micro-batch holds examples of one group. Empty where all are of one.
        weights: of each example: how much it counts in the mean that is a batch's loss. Empty where all
            count the same.
    """

    examples: int
    batch_size: int
    accumulation: int
    seed: int
    rank: int = 0
    ranks: int = 1
    groups: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, values in (("groups", self.groups), ("weights", self.weights)):
            if values and len(values) != self.examples:
                raise ValueError(f"{len(values)} {name} for {self.examples} examples")

    @property
    def examples_per_step(self) -> int:
        """Examples in a step over all ranks, but for smaller pieces at the end of an epoch or of a group."""
        return self.batch_size * self.accumulation * self.ranks

    @cached_property
    def steps_per_epoch(self) -> int:
        sizes = Counter(self.groups).values() or [self.examples]
        pieces = sum(-(-size // self.batch_size) for size in sizes)
        return -(-pieces // (self.accumulation * self.ranks))

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that `step` belongs to."""
        return step // self.steps_per_epoch

    def examples_in(self, step: int) -> int:
        """Examples that all ranks together read in `step`."""
        return sum(len(piece) for piece in self._pieces(step))

    def step(self, step: int) -> list[MicroBatch]:
        """This rank's micro-batches in `step`; may be empty in the last step of an epoch."""
        pieces = [tuple(piece.tolist()) for piece in self._pieces(step)]
        counts = [self._count(piece) for piece in pieces]
        return [
            MicroBatch(number, piece, counts[number] / sum(counts))
            for number, piece in enumerate(pieces)
            if number % self.ranks == self.rank
        ]

    def batches(self, first: int, end: int) -> Iterator[list[tuple[int, int]]]:
        """(epoch, example) pairs of every micro-batch from step `first` up to `end`; a batch sampler."""
        for step in range(first, end):
            for micro in self.step(step):
                yield [(self.epoch(step), example) for example in micro.examples]

    def _count(self, piece: tuple[int, ...]) -> float:
        """How much these examples count."""
        return sum(self.weights[example] for example in piece) if self.weights else float(len(piece))

    def _pieces(self, step: int) -> list[Tensor]:
        """The examples of every micro-batch of `step`, over all ranks."""
        count = self.accumulation * self.ranks
        begin = step % self.steps_per_epoch * count
        return self._pieces_of_epoch(self.epoch(step))[begin : begin + count]

    @cached_property
    def _pieces_of_epoch(self) -> Callable[[int], list[Tensor]]:
        """Epoch -> the examples of all its micro-batches; two epochs are remembered."""
        groups = torch.tensor(self.groups) if len(set(self.groups)) > 1 else None

        def pieces(epoch: int) -> list[Tensor]:
            order = _permutation(self.examples, number_of(self.seed, "epoch", epoch))
            if groups is None:
                return list(order.split(self.batch_size))
            parts = [order[groups[order] == group] for group in groups.unique()]
            cut = [piece for part in parts for piece in part.split(self.batch_size)]
            places = _permutation(len(cut), number_of(self.seed, "groups", epoch))
            return [cut[place] for place in places.tolist()]

        return lru_cache(maxsize=2)(pieces)


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


def first_epoch(setup: Setup) -> Iterator[Any]:
    """The batches of the first epoch on the device, all of them in every process, in evaluation mode."""
    whole = replace(setup.order, accumulation=1, rank=0, ranks=1)
    examples = SeededExamples(setup.data, setup.recipe.train.seed)
    for places in whole.batches(0, whole.steps_per_epoch):
        batch = setup.task.collate([examples[place] for place in places])
        yield send_to_device(batch, setup.accelerator.device)


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the one that trains decides what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
