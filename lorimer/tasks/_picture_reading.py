"""Finding all pictures of a recipe, checking every one of them, and deciding what an epoch shows.

Each picture is decoded once, for what must be known of all of them before the first step; whatever is wrong
with any picture, caption or mask is gathered, so that a person mends it all at once.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from lorimer.errors import DataError, RecipeError, listed
from lorimer.tasks._picture_buckets import Placement, Size, assign, buckets, place
from lorimer.tasks._picture_data import Picture
from lorimer.tasks._picture_decoding import Stored, decode, has_alpha, on_white, under_alpha
from lorimer.tasks._picture_draws import Share, epoch_draws
from lorimer.tasks._picture_duplicates import Likeness, likeness
from lorimer.tasks._picture_folder import PICTURE_SUFFIXES, notes_on_folder, read_folder
from lorimer.tasks._picture_report import bucket_table, notes_on_source, without_duplicates
from lorimer.tasks._picture_sections import PictureData, PictureSource
from lorimer.tasks._picture_shards import read_shards
from lorimer.tasks._picture_sources import Entry, Source, resolved, sources_of

# A picture that would have to be enlarged more than this many times teaches blur.
MAX_ENLARGEMENT = 2
_MAX_MASK_DISTORTION = 0.02


@dataclass(frozen=True)
class PictureSet:
    """Everything that a recipe's `data:` names.

    Attributes:
        training: what is learned from, regularisation pictures among it; crops and mirror images are pictures
            of their own.
        validation: what is held out; one crop of each.
        draws: the training pictures, by number, that an epoch shows; those with repeats stand repeatedly.
        notes: lines for a person: what was read, left out, found twice, and the table of buckets.
    """

    training: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    draws: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """For each draw the number of its bucket; pictures of one bucket can be a batch."""
        shapes = sorted({picture.size for picture in self.training})
        return tuple(shapes.index(self.training[number].size) for number in self.draws)


def read_pictures(
    data: PictureData,
    resolution: int,
    *,
    unit: int = 8,
    seed: int = 0,
    prior_weight: float = 1.0,
    prior: Source | None = None,
) -> PictureSet:
    """Find, decode and check every picture that `data` names.

    Args:
        resolution: side of the square whose area pictures are cut to, where `data` says none.
        unit: sides must be multiples of it.
        seed: fixes where random crops lie.
        prior_weight: how much the loss of a regularisation picture counts.
        prior: a further source, of pictures that were drawn for this.

    Raises:
        DataError: a source is not there, holds no picture, or any picture has a problem; all are listed.
        RecipeError: the section asks for what cannot be.
    """
    sources, notes = sources_of(data, resolution, unit)
    if not any(not source.regularisation for source in sources):
        raise DataError("data.sources: all are for regularisation; none is left to learn from")
    sources += [] if prior is None else [prior]
    held_sources = _held_out_sources(data, resolution, unit)
    found = _read_all([*sources, *held_sources], seed)
    for source, pictures in zip(sources, found, strict=False):
        notes += notes_on_source(source, pictures)
        notes += notes_on_folder(source) if source.path.is_dir() else []
    training = [picture for pictures in found[: len(sources)] for picture in pictures]
    held_out = [picture for pictures in found[len(sources) :] for picture in pictures]
    if data.validation.fraction:
        training, held_out = split(training, data.validation.fraction)
    training, held_out, told = without_duplicates(training, held_out, drop=data.duplicates == "drop")
    notes += told
    if held_out:
        notes.append(f"{len(held_out)} pictures held out for validation")
    views, draws = _epoch(training, sources, prior_weight, seed)
    notes += bucket_table(views, draws)
    return PictureSet(tuple(views), tuple(held_out), tuple(draws), tuple(notes))


def split(pictures: Sequence[Picture], fraction: float) -> tuple[list[Picture], list[Picture]]:
    """(training, held out): a share of the pictures that are no regularisation, chosen by their names' hash,
    so that further pictures change little of the choice."""
    own = [picture for picture in pictures if not picture.is_regularisation]
    by_hash = sorted(own, key=lambda picture: hashlib.sha256(picture.name.encode()).digest())
    held_out = by_hash[: max(1, round(fraction * len(own)))]
    if len(held_out) == len(own):
        raise DataError(
            f"data.validation.fraction: holds out all {len(own)} pictures; none is left to learn from"
        )
    chosen = {id(picture) for picture in held_out}
    return [picture for picture in pictures if id(picture) not in chosen], held_out


def _held_out_sources(data: PictureData, resolution: int, unit: int) -> list[Source]:
    if data.validation.path is None:
        return []
    if data.validation.fraction:
        raise RecipeError("data.validation: give a path or a fraction, not both")
    return [resolved(PictureSource(path=data.validation.path), data, resolution, unit)]


def _read_all(sources: Sequence[Source], seed: int) -> list[list[Picture]]:
    """The pictures of every source, each cropped once."""
    several = len({source.path for source in sources if not source.regularisation}) > 1 or len(sources) > 1
    found, problems = [], []
    for number, source in enumerate(sources):
        own: list[str] = []
        pictures = _read_source(source, number, own)
        if several:
            prefix = source.path.name or str(source.path)
            pictures = [replace(picture, name=f"{prefix}/{picture.name}") for picture in pictures]
            own = [f"{source.path}: {problem}" for problem in own]
        found.append(pictures)
        problems += own
    if problems:
        head = "data" if several else f"data.path {sources[0].path}"
        raise DataError(listed(head, problems))
    return found


def _read_source(source: Source, number: int, problems: list[str]) -> list[Picture]:
    archive = source.path.suffix.lower() == ".tar"
    if not archive and not source.path.is_dir():
        problems.append("there is no such folder")
        return []
    entries = read_shards(source, problems) if archive else read_folder(source, problems)
    if not entries and not problems:
        where = "in these shards" if archive else "here, nor in folders in it"
        problems.append(f"holds no pictures ({', '.join(PICTURE_SUFFIXES)}) {where}")
    pictures = []
    for looked in _look_at_all(entries, source, number):
        if isinstance(looked, Picture):
            pictures.append(looked)
        else:
            problems += looked
    return pictures


def _look_at_all(entries: Sequence[Entry], source: Source, number: int) -> list[Picture | list[str]]:
    shapes = _shapes(source)
    workers = min(8, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        from PIL import Image as Images

        warnings.simplefilter("error", Images.DecompressionBombWarning)
        return list(pool.map(lambda entry: _look_at(entry, source, number, shapes), entries))


def _look_at(entry: Entry, source: Source, number: int, shapes: tuple[Size, ...]) -> Picture | list[str]:
    """The picture, or what is wrong with it; an empty list where only its caption is, which was told."""
    try:
        data = entry.stored.read(entry.name)
        likely, original, masked = _facts(data, entry, source)
        placement = _placed(entry.name, original, source, shapes)
    except DataError as error:
        return [str(error)]
    if entry.caption is None:
        return []
    return Picture(
        entry.name, entry.caption, source.captions, entry.stored, hashlib.sha256(data).digest(), likely,
        placement, False, masked, source.mask_background, number, source.regularisation,
        repeats=entry.repeats,
    )  # fmt: skip


def _facts(
    data: bytes, entry: Entry, source: Source
) -> tuple[Likeness, Size, Stored | Literal["alpha"] | None]:
    picture = decode(data, entry.name)
    original = Size(picture.height, picture.width)
    if source.masks != "alpha":
        return likeness(on_white(picture)), original, _mask_file(entry.name, original, source.masks)
    return likeness(under_alpha(picture)), original, "alpha" if has_alpha(picture) else None


def _mask_file(name: str, original: Size, masks: Path | None) -> Stored | None:
    """The file of a picture's mask, checked; None where masks are not asked for."""
    if masks is None:
        return None
    path = (masks / name).with_suffix(".png")
    if not path.is_file():
        raise DataError(f"{name}: has no mask {path}; white is learned, black is not")
    mask = decode(Stored(path).read(str(path)), f"{name}: its mask {path}")
    stretch = (mask.width / mask.height) / (original.width / original.height)
    if abs(stretch - 1) > _MAX_MASK_DISTORTION:
        raise DataError(
            f"{name}: its mask {path} has another aspect ratio: {mask.width} x {mask.height} px, not as "
            f"{original}"
        )
    return Stored(path)


def _shapes(source: Source) -> tuple[Size, ...]:
    if source.shapes == "square":
        return (Size(source.resolution, source.resolution),)
    return buckets(source.resolution, source.step, source.smallest, source.largest)


def _placed(name: str, original: Size, source: Source, shapes: tuple[Size, ...]) -> Placement:
    square = source.shapes == "square"
    least = -(-source.resolution // MAX_ENLARGEMENT) if square else max(source.smallest, source.step)
    if min(original) < least:
        mend = "" if square else ", or lower data.smallest_side"
        raise DataError(
            f"{name}: {original} px is too small for a resolution of {source.resolution}; its shorter side "
            f"must be at least {least} px{mend}"
        )
    return place(original, assign(original, shapes, source.step, upscale=square))


def _epoch(
    pictures: Sequence[Picture], sources: Sequence[Source], prior_weight: float, seed: int
) -> tuple[list[Picture], list[int]]:
    """(crops and mirror images of the pictures that an epoch shows, draws as places among them)."""
    views: list[Picture] = []
    shown: list[list[int]] = [[] for _ in sources]
    most = max(_views_of(source) for source in sources)
    for picture in pictures:
        source = sources[picture.source]
        weight = prior_weight if picture.is_regularisation else 1.0
        for view in _views(replace(picture, loss_weight=weight), source, seed):
            # Where others have mirror images and this source has none, it is shown as often as they are.
            shown[picture.source] += [len(views)] * (picture.repeats * most // _views_of(source))
            views.append(view)
    shares = [
        Share(numbers, source.weight, source.regularisation)
        for numbers, source in zip(shown, sources, strict=True)
    ]
    draws = epoch_draws(shares)
    used = {number: place for place, number in enumerate(sorted(set(draws)))}
    return [views[number] for number in used], [used[number] for number in draws]


def _views_of(source: Source) -> int:
    return source.crops * (2 if source.flip else 1)


def _views(picture: Picture, source: Source, seed: int) -> list[Picture]:
    """The crops of a picture, and their mirror images if those are asked for."""
    crops = [picture]
    if source.crops > 1:
        place_of = hashlib.blake2b(f"{seed} {picture.name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(place_of, "little"))
        original, target = picture.placement.original, picture.placement.target
        crops = [replace(picture, placement=place(original, target, generator)) for _ in range(source.crops)]
    return crops + [crop.as_mirrored() for crop in crops] if source.flip else crops
