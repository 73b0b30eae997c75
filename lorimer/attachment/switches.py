"""Which adapters act, and how strongly, within a `with`; afterwards everything is as it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from lorimer.attachment.attached import live_sites
from lorimer.attachment.schedule import StrengthSchedule, finite
from lorimer.attachment.survey import survey
from lorimer.attachment.targets import by_pattern
from lorimer.errors import TargetError, UsageError
from lorimer.layers.host import CalledHost, slots_of
from lorimer.layers.rows import Rows
from lorimer.layers.sites import Site
from lorimer.layers.slots import AdapterSlots

Strength = float | StrengthSchedule
Strengths = Strength | Mapping[str, Strength | Mapping[str, Strength]]


@contextmanager
def enabled(model: nn.Module, *names: str) -> Iterator[None]:
    """Within this context just the adapters `names` are live, in that order; afterwards as before.

    Raises:
        TargetError: no adapter of that name is attached.
        StateError: adapters are merged.
    """
    found = live_sites(model)
    _require_attached(found, names)
    before = [(slots, slots.active) for slots in (site.slots for site in found.values())]
    wanted = list(dict.fromkeys(names))
    try:
        for slots, _ in before:
            slots.active = [name for name in wanted if name in slots.strengths]
        yield
    finally:
        for slots, active in before:  # but for what was detached meanwhile
            slots.active = [name for name in active if name in slots.strengths]


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within this context the model is the base model, to the bit; afterwards as before.

    Raises:
        StateError: adapters are merged.
    """
    with enabled(model):
        yield


@contextmanager
def strength(model: nn.Module, value: Strengths) -> Iterator[Callable[[float], None]]:
    """Within this context adapters act at `value` times their update; afterwards as before.

        with lorimer.strength(model, 0.5): ...                          # all of them
        with lorimer.strength(model, {"style": 0.5, "face": 1.2}): ...
        with lorimer.strength(model, {"style": {"down_blocks": 0.5, "re:.*mid.*": 0.0}}): ...

    Where an adapter's strength is a mapping, its keys are targets as text, which hold for all that is inside
    of what they name; the first that matches a layer counts, and other layers keep their strength. A
    `StrengthSchedule` may stand for any number; the context gives a function to move it on:

        with lorimer.strength(model, StrengthSchedule([(0, 1), (0.6, 0.3)])) as move:
            for step in range(steps):
                move(step / steps)
                ...

    For good: `adapter.strength = value`.

    Raises:
        TargetError: no adapter of that name is attached, or a pattern names nothing that it adapts.
        UsageError: a strength is no finite number.
        StateError: adapters are merged.
    """
    found = live_sites(model)
    wanted = _strengths_by_slots(model, found, value)
    before = [(slots, slots.strengths[name], name) for slots, name, _ in wanted]

    def move(progress: float) -> None:
        for slots, name, strength in wanted:
            if name in slots.strengths:
                slots.strengths[name] = _at(strength, progress)

    try:
        move(0.0)
        yield move
    finally:
        for slots, former, name in before:
            if name in slots.strengths:  # not detached meanwhile
                slots.strengths[name] = former


@contextmanager
def rows(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Within this context every row of a batch has its own adapter: the row i of the model's input, and of
    the input of every adapted layer, the adapter `names[i]`, or none where that is None. Which adapters
    are live otherwise does not matter; their strengths do.

        with lorimer.rows(model, ["style", None, "face"]):
            model(batch_of_three)

    Raises:
        TargetError: no adapter of that name is attached.
        UsageError: an adapter changes a parameter that a layer reads for all rows at once (attention's packed
            projections, an LSTM, a norm). And within: a layer's input has another number of rows.
        StateError: adapters are merged.
    """
    if isinstance(names, str) or not names:
        raise UsageError(f"rows are a list of names, one for each row of the batch, not {names!r}")
    found = live_sites(model)
    _require_attached(found, [name for name in names if name is not None])
    for site in found.values():
        shared = [name for name in site.slots.names() if name in names]
        if shared and not isinstance(site.layer, CalledHost):
            raise UsageError(
                f"{site.full_name!r} is read for all rows of a batch at once, so rows cannot have different "
                f"adapters there; run those of {shared[0]!r} on their own"
            )
    mixed = Rows(names)
    every = dict.fromkeys(slots_of(site.layer) for site in found.values())
    before = [(slots, slots.rows) for slots in every if slots is not None]
    try:
        for slots, _ in before:
            slots.rows = mixed
        yield
    finally:
        for slots, former in before:
            slots.rows = former


def _strengths_by_slots(
    model: nn.Module, found: Mapping[str, Site], value: Strengths
) -> list[tuple[AdapterSlots, str, Strength]]:
    """(slots, adapter's name, strength) of all that is to be set."""
    attached = dict.fromkeys(name for site in found.values() for name in site.slots.names())
    by_name = value if isinstance(value, Mapping) else dict.fromkeys(attached, value)
    _require_attached(found, list(by_name))
    wanted: list[tuple[AdapterSlots, str, Strength]] = []
    for name, own in by_name.items():
        adapted = [path for path, site in found.items() if name in site.slots.strengths]
        if isinstance(own, Mapping):
            by_path = by_pattern(survey(model), adapted, own)
        else:
            by_path = dict.fromkeys(adapted, own)
        wanted += [(found[path].slots, name, _checked(strength)) for path, strength in by_path.items()]
    return wanted


def _at(strength: Strength, progress: float) -> float:
    return strength.at(progress) if isinstance(strength, StrengthSchedule) else strength


def _checked(strength: Strength) -> Strength:
    return strength if isinstance(strength, StrengthSchedule) else finite(strength)


def _require_attached(found: Mapping[str, Site], names: Collection[str]) -> None:
    """Raise `TargetError` for a name that no adapter has."""
    attached = dict.fromkeys(name for site in found.values() for name in site.slots.names())
    for name in names:
        if name not in attached:
            raise TargetError(f"no adapter called {name!r} is attached; attached: {list(attached) or 'none'}")
