"""How often an epoch shows each picture, so that sources get the shares that repeats or weights give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One source's part in an epoch.

    Attributes:
        pictures: numbers of its pictures, each as often as it is to be shown, relative to the others.
        weight: its share of the epoch, relative to the other sources; all have one or none has.
        regularisation: without weights, these together are shown as often as all others together.
    """

    pictures: Sequence[int]
    weight: float | None = None
    regularisation: bool = False


def epoch_draws(shares: Sequence[Share]) -> list[int]:
    """The pictures that an epoch shows, sorted; each as often as it is shown.

    With weights, the epoch is as long as it must be for every picture to be shown at least as often as its
    source's `pictures` say. A regularisation picture may go without where there are more of them than draws.
    """
    if any(share.weight is not None for share in shares):
        return _by_weight(shares)
    learned = [each for share in shares if not share.regularisation for each in share.pictures]
    others = [each for share in shares if share.regularisation for each in share.pictures]
    return sorted(learned + spread(others, len(learned)))


def spread(pictures: Sequence[int], count: int) -> list[int]:
    """`count` draws spread over `pictures` as evenly as can be."""
    if not pictures:
        return []
    whole, rest = divmod(count, len(pictures))
    return list(pictures) * whole + [pictures[place * len(pictures) // rest] for place in range(rest)]


def _by_weight(shares: Sequence[Share]) -> list[int]:
    kept = [share for share in shares if share.pictures]
    total = sum(share.weight or 0.0 for share in kept)
    parts = [(share.weight or 0.0) / total for share in kept]
    length = max(len(share.pictures) / part for share, part in zip(kept, parts, strict=True))
    return sorted(
        each
        for share, part in zip(kept, parts, strict=True)
        for each in spread(share.pictures, max(round(length * part), len(share.pictures)))
    )
