"""The frozen prefix in training: what it gives is computed once and kept, where that pays.

    every step     prefix -> rest -> loss, backward
    with a prefix  once for each example: prefix -> disk;   every step: disk -> rest -> loss, backward

It needs examples that are the same in every epoch, and nothing random before the first layer that trains.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from lorimer.errors import RecipeError
from lorimer.layers.prefix import NoPrefixError, Prefix, find_prefix
from lorimer.tasks._encoding_cache import EncodingCache, default_cache_folder, make_room, room_in
from lorimer.tasks._fixed_examples import FixedExamples, States
from lorimer.train.events import describe_bytes, describe_seconds
from lorimer.train.seeding import seed_all
from lorimer.train.setup import Setup

WORTHWHILE = 30.0  # seconds that must be saved, and
SHARE = 0.1  # of the run, before anything is stored unasked
ROUNDING = 1e-3  # of the largest value: what differs more is not the same computed in another order
_SAY_EVERY = 10.0
_MEND = "set XDG_CACHE_HOME to a folder with more room, or train.cache_prefix to never"


@dataclass
class StoredPrefix:
    """What is kept for one run.

    Attributes:
        datasets: whose examples are computed once.
        together: how many at once; always as many, so that each is computed in the same way every time.
        seconds: of a forward and backward pass with it, measured.
        missing_bytes: of what is not there yet, estimated.
        note: a line for the preflight.
    """

    setup: Setup
    cache: EncodingCache
    datasets: Sequence[FixedExamples]
    together: int
    seconds: float
    missing_bytes: int
    note: str

    def fill(self, say: Callable[[str], None]) -> None:
        """Compute what is not there yet; from then on the datasets' examples bring it.

        Raises:
            LorimerError: it cannot be written, or holds NaN.
        """
        begin = told = time.monotonic()
        own = {key for data in self.datasets for key in self._keys(data)}
        make_room(self.cache.folder, self.missing_bytes, _limit(self.setup), own)
        for data in self.datasets:
            places = {key: place for place, key in enumerate(self._keys(data))}
            missing = [(key, place) for key, place in places.items() if not self.cache.has(key)]
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

    def _keys(self, data: FixedExamples) -> list[str]:
        return [self.cache.key(key.encode()) for key in data.keys]

    def _states(self, key: str) -> States:
        kept = self.cache[self.cache.key(key.encode())]
        return tuple(kept[name] for name in sorted(kept))


def choose_prefix(setup: Setup, seconds: float, decided: bool | None = None) -> StoredPrefix | None:
    """What should be kept in this run; None where nothing can be, or it would not pay.

    Args:
        seconds: of a forward and backward pass without it.
        decided: whether the run that is resumed had it, where it was left to the preflight.

    Raises:
        RecipeError: the recipe asks for it, and it cannot be.
    """
    wish = setup.recipe.train.cache_prefix
    asked = wish == "always" or (wish == "auto" and decided is True)
    if wish == "never" or (wish == "auto" and decided is False):
        return None
    try:
        return _chosen(setup, seconds, asked)
    except NoPrefixError as error:
        setup.task.prefix = None
        if asked:
            raise RecipeError(f"train.cache_prefix: {error}") from error
        return None


def _chosen(setup: Setup, seconds: float, asked: bool) -> StoredPrefix:
    train, order, task = setup.recipe.train, setup.order, setup.task
    datasets = _datasets(setup)
    passes = train.steps * -(-order.examples_per_step // (order.batch_size * order.ranks))
    if not asked and (passes * seconds < WORTHWHILE or train.steps < 2 * order.steps_per_epoch):
        raise NoPrefixError("the run is short")
    data, places = datasets[0], list(order.step(0)[0].examples)
    ragged = task.ragged(_batch(setup, data, places))
    together = 1 if ragged else train.batch_size
    setup.set_training()
    task.prefix = find_prefix(
        setup.model,
        partial(_loss, setup, _batch(setup, data, places)),
        None if ragged else len(places),
        None if ragged else partial(_loss, setup, _batch(setup, data, [*places, places[0]])),
    )
    recorded, recording = _timed(lambda: _record(setup, data, places, together))
    states = recorded[: len(places)]
    difference = _difference_elsewhere(setup, data, places, states)
    rest = _seconds_of_rest(setup, data, places, states)
    facts = _facts(setup, task.prefix, data, together)
    # None stay in the process, to which memory matters: the system keeps files that are read often.
    cache = EncodingCache(default_cache_folder() / "prefix", (), facts, _MEND, memory_bytes=0)
    keys = {cache.key(key.encode()) for each in datasets for key in each.keys}
    missing = sum(not cache.is_there(key) for key in keys)
    each_bytes = max(sum(tensor.nbytes for tensor in each) for each in states)
    filling = recording / len(places) * missing
    saved = passes * (seconds - rest) - filling
    if not asked and saved < max(WORTHWHILE, SHARE * passes * seconds):
        raise NoPrefixError("it would not pay")
    if missing * each_bytes > room_in(cache.folder, _limit(setup), keys):
        raise NoPrefixError(
            f"{describe_bytes(missing * each_bytes)} more do not fit into train.cache_prefix_gigabytes, "
            f"{describe_bytes(_limit(setup))}, beside what runs of the last day keep"
        )
    same = f"up to rounding ({difference:.0e} of the largest value)" if difference else "to the bit"
    note = (
        f"frozen prefix: what precedes the first layer that trains is computed once for {len(keys):,} "
        f"examples ({missing:,} of them anew, in about {describe_seconds(filling)}) and kept, "
        f"{describe_bytes(len(keys) * each_bytes)}; a pass then takes {rest:.2g} s and not {seconds:.2g}; "
        f"the same {same}"
    )
    return StoredPrefix(setup, cache, datasets, together, rest, missing * each_bytes, note)


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


def _facts(setup: Setup, prefix: Prefix, data: FixedExamples, together: int) -> str:
    """What decides, beside an example, what the prefix gives, to the last bit. What a network computes does
    not stand in its weights alone, so that it is asked: of one example the outcome is among the facts."""
    sample = min(range(len(data.keys)), key=data.keys.__getitem__)
    outcome = hashlib.sha256()
    for tensor in _record(setup, data, [sample], together)[0]:
        outcome.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    precision, device = setup.recipe.train.mixed_precision, setup.accelerator.device.type
    return (
        f"{prefix.digest()} {outcome.hexdigest()} {precision} {device} {torch.get_num_threads()} {together}"
    )


def _limit(setup: Setup) -> int:
    return int(setup.recipe.train.cache_prefix_gigabytes * 1e9)


def _batch(setup: Setup, data: FixedExamples, places: Sequence[int]) -> Any:
    examples = [data.example(place) for place in places]
    return send_to_device(setup.task.collate(examples), setup.accelerator.device)


def _loss(setup: Setup, batch: Any, seed: int) -> Tensor:
    seed_all(setup.recipe.train.seed, "prefix", seed)
    with setup.accelerator.autocast():
        return setup.task.loss(setup.model, batch)


@torch.no_grad()
def _record(setup: Setup, data: FixedExamples, places: Sequence[int], together: int) -> list[States]:
    """What the prefix gives for these examples, and for more where the last batch had to be filled up."""
    found: list[States] = []
    with setup.accelerator.autocast():
        for part in _parts(places, together):
            found += setup.task.record(setup.model, _batch(setup, data, part))
    return found


def _parts(places: Sequence[int], size: int) -> Iterator[list[int]]:
    """Batches of that many, the last filled up with its own last example."""
    for first in range(0, len(places), size):
        part = list(places[first : first + size])
        yield part + part[-1:] * (size - len(part))


def _difference_elsewhere(
    setup: Setup, data: FixedExamples, places: Sequence[int], states: Sequence[States]
) -> float:
    """By how much what the prefix gives for an example differs in other company and in evaluation, of the
    largest value.

    Raises:
        NoPrefixError: by more than rounding does.
    """
    backwards = _record(setup, data, places[::-1], len(places))[::-1]
    alone = _record(setup, data, places[:1], 1)
    repeated = _record(setup, data, places[:1], len(places))[:1]
    setup.model.eval()
    evaluated = _record(setup, data, places[:1], len(places))[:1]
    setup.set_training()
    company = max(_difference(states, each) for each in (backwards, alone, repeated))
    if not company <= ROUNDING:
        raise NoPrefixError("what the frozen layers give for an example depends on the rest of its batch")
    mode = _difference(repeated, evaluated)
    if not mode <= ROUNDING:
        raise NoPrefixError("the frozen layers give something else in evaluation")
    return max(company, mode)


def _difference(some: Sequence[States], others: Sequence[States]) -> float:
    """The largest of all tensors of the examples that both have, relative to the largest value."""
    pairs = [
        pair for mine, theirs in zip(some, others, strict=False) for pair in zip(mine, theirs, strict=True)
    ]
    return max(
        0.0 if torch.equal(a, b) else ((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item()
        for a, b in pairs
    )


def _seconds_of_rest(
    setup: Setup, data: FixedExamples, places: Sequence[int], states: Sequence[States]
) -> float:
    """Of a forward and backward pass that begins behind the prefix, the second of two.

    Raises:
        NoPrefixError: its loss is another one, since more than the prefix reads what the examples lack then.
    """
    pairs = zip(places, states, strict=True)
    known = [{**data.known_example(place), "states": tuple(t.cpu() for t in each)} for place, each in pairs]
    batch = send_to_device(setup.task.collate(known), setup.accelerator.device)

    def once() -> Tensor:
        loss = _loss(setup, batch, 0)
        setup.accelerator.backward(loss)
        return loss.detach()

    try:
        _timed(once)
        loss, seconds = _timed(once)
    finally:
        setup.zero_grad()
    with torch.no_grad():
        wanted = _loss(setup, _batch(setup, data, places), 0)
    if not (loss - wanted).abs() <= ROUNDING * wanted.abs():
        raise NoPrefixError("the loss reads more of an example than what its frozen layers give")
    return seconds


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    value = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return value, time.perf_counter() - begin
