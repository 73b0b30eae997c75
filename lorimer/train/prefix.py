"""The frozen prefix in training: what it gives is computed once and kept, where that pays.

    every step     prefix -> rest -> loss, backward
    with a prefix  once for each example: prefix -> disk;   every step: disk -> rest -> loss, backward

It needs examples that are the same in every epoch, and nothing random before the first layer that trains.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from lorimer.errors import RecipeError
from lorimer.layers.prefix import NoPrefixError, Prefix, find_prefix
from lorimer.tasks._encoding_cache import EncodingCache, default_cache_folder, make_room
from lorimer.tasks._fixed_examples import FixedExamples
from lorimer.train.events import describe_bytes, describe_seconds
from lorimer.train.seeding import seed_all
from lorimer.train.setup import Setup

WORTHWHILE = 30.0  # seconds that must be saved, and
SHARE = 0.1  # of the run, before anything is stored unasked
_SAY_EVERY = 10.0
_MEND = "set XDG_CACHE_HOME to a folder with more room, or train.cache_prefix to never"


@dataclass
class StoredPrefix:
    """What is kept for one run.

    Attributes:
        datasets: whose examples are computed once.
        together: how many at once; always as many, so that each is computed in the same way every time.
        seconds: of a forward and backward pass with it, measured.
        filling: seconds that computing everything takes, estimated.
        note: a line for the preflight.
    """

    setup: Setup
    cache: EncodingCache
    datasets: Sequence[FixedExamples]
    together: int
    seconds: float
    filling: float
    note: str

    def fill(self, say: Callable[[str], None]) -> None:
        """Compute what is not there yet; from then on the datasets' examples bring it.

        Raises:
            LorimerError: it cannot be written, or holds NaN.
        """
        begin = told = time.monotonic()
        for data in self.datasets:
            keys = [self.cache.key(key.encode()) for key in data.keys]
            missing = list({key: place for place, key in enumerate(keys) if not self.cache.has(key)}.items())
            for first in range(0, len(missing), self.together):
                part = missing[first : first + self.together]
                states = _record(self.setup, data, [place for _, place in part], self.together)
                for (key, _), each in zip(part, states, strict=False):
                    self.cache.keep(key, {f"{number:03d}": tensor for number, tensor in enumerate(each)})
                if time.monotonic() - told > _SAY_EVERY:
                    told = time.monotonic()
                    say(f"frozen prefix: {first + len(part):,} of {len(missing):,} examples computed")
            data.states = self._states
        say(f"frozen prefix: there after {describe_seconds(time.monotonic() - begin)}")

    def _states(self, key: str) -> tuple[Tensor, ...]:
        kept = self.cache[self.cache.key(key.encode())]
        return tuple(kept[name] for name in sorted(kept))


def choose_prefix(setup: Setup, seconds: float) -> StoredPrefix | None:
    """What should be kept in this run; None where nothing can be, or it would not pay.

    Args:
        seconds: of a forward and backward pass without it.

    Raises:
        RecipeError: the recipe asks for it, and it cannot be.
    """
    wish = setup.recipe.train.cache_prefix
    if wish == "never":
        return None
    try:
        return _chosen(setup, seconds, asked=wish == "always")
    except NoPrefixError as error:
        setup.task.prefix = None
        if wish == "always":
            raise RecipeError(f"train.cache_prefix: {error}") from error
        return None


def _chosen(setup: Setup, seconds: float, asked: bool) -> StoredPrefix:
    train, order, task = setup.recipe.train, setup.order, setup.task
    datasets = _datasets(setup)
    passes = train.steps * -(-order.examples_per_step // (order.batch_size * order.ranks))
    if not asked and (passes * seconds < WORTHWHILE or train.steps < 2 * order.steps_per_epoch):
        raise NoPrefixError("the run is short")
    data, places = datasets[0], list(order.step(0)[0].examples)
    batch = _batch(setup, [data.example(place) for place in places])
    ragged = task.ragged(batch)

    def run(seed: int) -> Tensor:
        seed_all(train.seed, "prefix", seed)
        with setup.accelerator.autocast():
            return task.loss(setup.model, batch)

    setup.set_training()
    task.prefix = prefix = find_prefix(setup.model, run, None if ragged else len(places))
    together = 1 if ragged else train.batch_size
    states, recording = _timed(lambda: _record(setup, data, places[::-1], together))
    rest = _seconds_of_rest(setup, data, places, states[: len(places)][::-1])
    count = sum(len(set(each.keys)) for each in datasets)
    size = max(sum(tensor.nbytes for tensor in each) for each in states) * count
    filling = recording / len(places) * count
    saved = passes * (seconds - rest) - filling
    if not asked and saved < max(WORTHWHILE, SHARE * passes * seconds):
        raise NoPrefixError("it would not pay")
    folder, limit = default_cache_folder() / "prefix", int(train.cache_prefix_gigabytes * 1e9)
    if not make_room(folder, size, limit):
        raise NoPrefixError(
            f"{describe_bytes(size)} do not fit into train.cache_prefix_gigabytes, {describe_bytes(limit)}, "
            "beside what runs of the last day keep"
        )
    exact = _difference(task.record(setup.model, batch), states[: len(places)][::-1])
    note = (
        f"frozen prefix: what precedes the first layer that trains is computed once for {count:,} examples, "
        f"about {describe_seconds(filling)} and {describe_bytes(size)} on disk; a pass then takes {rest:.2g} "
        f"s and not {seconds:.2g}; the same {exact}"
    )
    cache = EncodingCache(folder, (), _facts(setup, prefix, together), _MEND)
    return StoredPrefix(setup, cache, datasets, together, rest, filling, note)


def _datasets(setup: Setup) -> list[FixedExamples]:
    """The training examples, and those held out where they are such too.

    Raises:
        NoPrefixError: nothing of these can be kept.
    """
    if setup.accelerator.num_processes > 1:
        raise NoPrefixError("several processes train")
    if setup.offload is not None:
        raise NoPrefixError("train.offload moves the layers that would be skipped")
    if not isinstance(setup.data, FixedExamples):
        raise NoPrefixError(f"the task {setup.task.name} has no use for it")
    if not setup.data.keys:
        raise NoPrefixError("examples are not the same in every epoch, or the model does not allow it")
    others = [setup.task.held_out]
    return [setup.data, *(each for each in others if isinstance(each, FixedExamples) and each.keys)]


def _facts(setup: Setup, prefix: Prefix, together: int) -> str:
    """What decides, beside an example, what the prefix gives, to the last bit."""
    libraries = [
        f"{name} {sys.modules[name].__version__}" for name in ("torch", "transformers") if name in sys.modules
    ]
    precision, device = setup.recipe.train.mixed_precision, setup.accelerator.device.type
    return f"{prefix.digest()} {libraries} {precision} {device} {torch.get_num_threads()} {together}"


def _batch(setup: Setup, examples: Sequence[Any]) -> Any:
    return send_to_device(setup.task.collate(examples), setup.accelerator.device)


@torch.no_grad()
def _record(
    setup: Setup, data: FixedExamples, places: Sequence[int], together: int
) -> list[tuple[Tensor, ...]]:
    """What the prefix gives for these examples, and for more where the last batch had to be filled up."""
    found: list[tuple[Tensor, ...]] = []
    with setup.accelerator.autocast():
        for part in _parts(places, together):
            batch = _batch(setup, [data.example(place) for place in part])
            found += setup.task.record(setup.model, batch)
    return found


def _parts(places: Sequence[int], size: int) -> Iterator[list[int]]:
    """Batches of that many, the last filled up with its own last example."""
    for first in range(0, len(places), size):
        part = list(places[first : first + size])
        yield part + part[-1:] * (size - len(part))


def _seconds_of_rest(
    setup: Setup, data: FixedExamples, places: Sequence[int], states: Sequence[tuple[Tensor, ...]]
) -> float:
    """Of a forward and backward pass that begins behind the prefix, the second of two."""
    pairs = zip(places, states, strict=True)
    known = [{**data.known_example(place), "states": tuple(t.cpu() for t in each)} for place, each in pairs]
    seconds = 0.0

    def once() -> None:
        with setup.accelerator.autocast():
            loss = setup.task.loss(setup.model, _batch(setup, known))
        setup.accelerator.backward(loss)

    try:
        for _ in range(2):
            _, seconds = _timed(once)
    finally:
        setup.zero_grad()
    return seconds


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    value = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return value, time.perf_counter() - begin


def _difference(one: Sequence[tuple[Tensor, ...]], other: Sequence[tuple[Tensor, ...]]) -> str:
    """How near what was computed in one batch is to what was computed in others."""
    worst = 0.0
    for mine, theirs in zip(one, other, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            if not torch.equal(a, b):
                worst = max(worst, ((a - b).abs().max() / a.abs().max()).item())
    return f"up to rounding ({worst:.0e} of the largest value)" if worst else "to the bit"
