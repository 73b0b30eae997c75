"""Lines about pictures for a person: sources, the table of buckets, duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lorimer.tasks._picture_data import Picture
from lorimer.tasks._picture_duplicates import Duplicate, duplicates
from lorimer.tasks._picture_sources import Source

_SHOWN = 5


def notes_on_source(source: Source, pictures: Sequence[Picture]) -> list[str]:
    """How many pictures, what they are cut to, and what is unusual about them."""
    count = len(pictures)
    shapes = len({picture.size for picture in pictures})
    lines = [
        f"{count} {'regularisation ' * source.regularisation}picture{'s' * (count != 1)} in {source.path}, "
        f"cropped to {source.resolution} px" + (f" in {shapes} shapes" if shapes > 1 else "")
    ]
    if enlarged := sum(picture.enlarged for picture in pictures):
        lines.append(f"of these, enlarged because they are smaller: {enlarged}")
    if source.masks == "alpha" and (bare := sum(picture.masked is None for picture in pictures)):
        lines.append(f"of these, without an alpha channel, so learned as a whole: {bare}")
    return lines


def bucket_table(pictures: Sequence[Picture], draws: Sequence[int]) -> list[str]:
    """One line for each shape: how many pictures and draws of an epoch, and how much the crop leaves out;
    none where there is one shape and every picture is drawn once."""
    shapes = sorted({picture.size for picture in pictures})
    if len(shapes) == 1 and len(set(draws)) == len(draws):
        return []
    drawn = Counter(pictures[number].size for number in draws)
    lines = [f"{'bucket':>12} {'pictures':>9} {'an epoch':>9} {'lost to the crop':>17}"]
    for shape in shapes:
        here = [picture for picture in pictures if picture.size == shape]
        files = len({(picture.source, picture.name) for picture in here})
        lost = sum(picture.placement.lost for picture in here) / len(here)
        lines.append(f"{shape!s:>12} {files:>9} {drawn[shape]:>9} {lost:>17.0%}")
    return lines


def without_duplicates(
    training: Sequence[Picture], held_out: Sequence[Picture], drop: bool
) -> tuple[list[Picture], list[Picture], list[str]]:
    """(training, held out, lines about pictures that are there twice); with `drop` without all but the first,
    where training counts before regularisation and that before what is held out."""
    own = [picture for picture in training if not picture.is_regularisation]
    ranked = [*own, *(picture for picture in training if picture.is_regularisation), *held_out]
    pairs = [
        pair
        for pair in duplicates([picture.likeness for picture in ranked])
        if ranked[pair.first].stored
        != ranked[pair.second].stored  # one file may be in two sources on purpose
    ]
    lines = _lines(ranked, pairs, len(training))
    if not (drop and pairs):
        return list(training), list(held_out), lines
    dropped = {id(ranked[pair.second]) for pair in pairs}
    lines.append(f"left out, as they are there already: {len(dropped)}")
    left = [[each for each in part if id(each) not in dropped] for part in (training, held_out)]
    return left[0], left[1], lines


def _lines(ranked: Sequence[Picture], pairs: Sequence[Duplicate], training: int) -> list[str]:
    across = [pair for pair in pairs if pair.second >= training > pair.first]
    within = [pair for pair in pairs if not pair.second >= training > pair.first]
    return [
        *_named("there more than once", ranked, within),
        *_named("warning: held out for validation and trained on as well", ranked, across),
    ]


def _named(head: str, ranked: Sequence[Picture], pairs: Sequence[Duplicate]) -> list[str]:
    if not pairs:
        return []
    names = [
        f"{ranked[pair.second].name} {'is' if pair.exact else 'is nearly'} {ranked[pair.first].name}"
        for pair in pairs[:_SHOWN]
    ]
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return [f"{head}: {', '.join(names)}{more}"]
