"""Which labelled pictures are held out: of every label its share, and no picture that is trained on too.

Pictures that are alike, nearly or to the pixel, form a cluster, which stands on one side as a whole: else
what is held out would be known already, and accuracy flattered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from lorimer.errors import DataError
from lorimer.tasks._checked_pictures import LabelledPicture
from lorimer.tasks._labels import Labels
from lorimer.tasks._picture_duplicates import Likenesses

Clusters = Sequence[Sequence[int]]  # places of pictures that belong together
Sides = tuple[list[LabelledPicture], list[LabelledPicture]]

_SHOWN = 3


def by_fraction(pictures: Sequence[LabelledPicture], clusters: Clusters, fraction: float, seed: int) -> Sides:
    """(to learn from, held out): of every label about `fraction` is held out, and never all; overall as near
    to it as clusters allow; the seed chooses."""
    held: set[int] = set()
    owed = 0.0  # by labels before, so that rounding does not add up
    for stratum in _strata(pictures, clusters, seed):
        share, taken = fraction * sum(map(len, stratum)) + owed, 0
        stratum.remove(max(stratum, key=len))  # to learn from
        for cluster in stratum:
            if taken + len(cluster) <= share + 0.5:
                taken += len(cluster)
                held.update(cluster)
        owed = min(max(share - taken, -0.5), 0.5)
    return _sides(pictures, held)


def by_folds(
    pictures: Sequence[LabelledPicture], clusters: Clusters, folds: int, fold: int, seed: int
) -> Sides:
    """(to learn from, held out): fold number `fold` of `folds`, which are disjoint, make up the whole, and
    have of every label about the same."""
    sizes = [0] * folds
    held: set[int] = set()
    for stratum in _strata(pictures, clusters, seed):
        own = [0] * folds  # pictures of this label
        for cluster in sorted(stratum, key=len, reverse=True):
            *_, smallest = min(zip(own, sizes, range(folds), strict=True))
            own[smallest] += len(cluster)
            sizes[smallest] += len(cluster)
            if smallest == fold:
                held.update(cluster)
    return _sides(pictures, held)


def told_unlearned(pictures: Sequence[LabelledPicture], labels: Labels) -> list[str]:
    """A line for the preflight about labels of which there is nothing to learn from."""
    known: set[object] = set()
    for picture in pictures:
        known.update(picture.label if isinstance(picture.label, tuple) else (picture.label,))
    lacking = [name for place, name in enumerate(labels.names) if place not in known]
    if not lacking:
        return []
    shown = ", ".join(lacking[:_SHOWN]) + ", ..." * (len(lacking) > _SHOWN)
    return [f"warning: labels without a picture to learn from: {len(lacking):,} ({shown})"]


def told_clusters(pictures: Sequence[LabelledPicture], clusters: Clusters) -> list[str]:
    """Lines for the preflight about pictures that are there more than once."""
    several = [[pictures[place] for place in cluster] for cluster in clusters if len(cluster) > 1]
    if not several:
        return []
    count = sum(len(cluster) - 1 for cluster in several)
    exact = count - sum(len({each.likeness.digest for each in cluster}) - 1 for cluster in several)
    lines = [
        f"there more than once: {exact:,} pictures, nearly: {count - exact:,}, such as {_named(several)}; "
        "those alike stand on one side"
    ]
    torn = [cluster for cluster in several if len({each.label for each in cluster}) > 1]
    if torn:
        lines.append(f"warning: alike, and with different labels: {len(torn):,}, such as {_named(torn)}")
    return lines


def without_held_out(
    training: Sequence[LabelledPicture], held_out: Sequence[LabelledPicture]
) -> tuple[list[LabelledPicture], list[str]]:
    """What is trained on without what is like a picture of `held_out`, which came by itself, and a line about
    that.

    Raises:
        DataError: nothing would be left.
    """
    index = Likenesses([picture.likeness for picture in held_out])
    left, alike = [], []
    for picture in training:
        found = index.like(picture.likeness)
        if len(found):
            alike.append([picture, held_out[int(found[0])]])
        else:
            left.append(picture)
    if not left:
        raise DataError("data.validation: every picture to learn from is held out as well")
    if not alike:
        return left, []
    return left, [
        f"warning: {len(alike):,} pictures are held out as well, exactly or nearly, so not trained on, "
        f"such as {_named(alike)}"
    ]


def _named(clusters: Sequence[Sequence[LabelledPicture]]) -> str:
    return ", ".join(f"{first.name} = {second.name}" for first, second, *_ in clusters[:_SHOWN])


def _strata(
    pictures: Sequence[LabelledPicture], clusters: Clusters, seed: int
) -> Iterator[list[Sequence[int]]]:
    """Clusters in random order, label by label. Sets of labels that are there once make up one stratum, and
    so do numbers."""
    order = torch.randperm(len(clusters), generator=torch.Generator().manual_seed(seed)).tolist()
    strata: dict[object, list[Sequence[int]]] = defaultdict(list)
    for place in order:
        label = pictures[clusters[place][0]].label
        strata[None if isinstance(label, float) else label].append(clusters[place])
    for rare in [label for label, own in strata.items() if isinstance(label, tuple) and len(own) == 1]:
        strata[None] += strata.pop(rare)
    for key in sorted(strata, key=str):
        yield strata[key]


def _sides(pictures: Sequence[LabelledPicture], held: set[int]) -> Sides:
    """
    Raises:
        DataError: one side would be empty.
    """
    if not held or len(held) == len(pictures):
        raise DataError(
            f"data.validation: of {len(pictures)} pictures {len(held)} would be held out; give another share"
        )
    sides: Sides = ([], [])
    for place, picture in enumerate(pictures):
        sides[place in held].append(picture)
    return sides
