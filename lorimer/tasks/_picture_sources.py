"""Where pictures come from: the `data:` section as one plain `Source` for each folder or archive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorimer.errors import RecipeError
from lorimer.tasks._kohya_dataset import read_kohya_dataset
from lorimer.tasks._picture_captions import CaptionOptions
from lorimer.tasks._picture_decoding import Stored
from lorimer.tasks._picture_sections import PictureData, PictureSource

_USUAL_STEP = 64  # side of the shapes that Stable Diffusion's own training was cut to
_FINE_BELOW = 256  # at less, multiples of 64 would leave hardly any shapes


@dataclass(frozen=True)
class Source:
    """One folder or set of shards, with everything that the recipe says of it.

    Attributes:
        path: a folder, or a `.tar` with or without ranges such as `{000..010}`.
        repeats: draws of each picture in an epoch; None leaves it to names of folders.
        weight: its share of an epoch's draws, relative to the other sources; None for all by their repeats.
        regularisation: these pictures show the class, not what is to be learned.
        nested: folders in the folder are searched too.
        caption_suffix, default_caption, captions: how captions are found, and varied.
        masks: a folder, "alpha", or None.
        mask_background: weight of what a mask leaves out, 0 to 1.
        resolution, shapes, step, smallest, largest: what pictures are cut to, in pixels.
        crops: how many crops of each picture; 1 is the centre.
        flip: mirror images are further pictures.
    """

    path: Path
    repeats: int | None
    weight: float | None
    regularisation: bool
    nested: bool
    caption_suffix: str
    default_caption: str | None
    captions: CaptionOptions
    masks: Path | Literal["alpha"] | None
    mask_background: float
    resolution: int
    shapes: Literal["buckets", "square"]
    step: int
    smallest: int
    largest: int
    crops: int
    flip: bool


@dataclass(frozen=True)
class Entry:
    """A picture that was found and not yet looked at.

    Attributes:
        name: its path within its source, with forward slashes.
        stored: where its bytes lie.
        caption: as written, in one line; None where it is at fault, which was told already.
        repeats: draws in an epoch.
    """

    name: str
    stored: Stored
    caption: str | None
    repeats: int


def sources_of(data: PictureData, resolution: int, unit: int) -> tuple[list[Source], list[str]]:
    """The sources that `data` names, training and regularisation, and notes on what was not understood.

    Args:
        resolution: the side that holds where neither the section nor a source says one.
        unit: the model takes sides that are multiples of it.

    Raises:
        RecipeError: sides that the model cannot take; weights for some sources only.
        DataError: a kohya dataset file is broken.
    """
    named = data.sources or (PictureSource(path=_required(data.path), repeats=data.repeats),)
    sources, notes = [], []
    for each in named:
        if each.path.suffix.lower() == ".toml":
            inner, told = read_kohya_dataset(each.path)
            notes += told
            sources += [resolved(one, data, resolution, unit, nested=False) for one in inner]
        else:
            sources.append(resolved(each, data, resolution, unit))
    _check_weights(sources)
    return sources, notes


def resolved(
    source: PictureSource, data: PictureData, resolution: int, unit: int, nested: bool = True
) -> Source:
    """`source` with what it leaves open taken from the `data:` section."""

    def chosen(name: str) -> Any:
        own = getattr(source, name)
        return getattr(data, name) if own is None else own

    side = chosen("resolution") or resolution
    step = chosen("bucket_step") or (math.lcm(_USUAL_STEP, unit) if side >= _FINE_BELOW else unit)
    for name, value in (("resolution", side), ("bucket_step", step)):
        if value % unit:
            raise RecipeError(f"data.{name}: must be a multiple of {unit} for this model, not {value}")
    step = min(step, side)
    smallest = min(chosen("smallest_side") or side // 2, side)
    return Source(
        path=source.path,
        repeats=source.repeats if data.sources or source.repeats is not None else data.repeats,
        weight=source.weight,
        regularisation=source.regularisation,
        nested=nested,
        caption_suffix=chosen("caption_suffix"),
        default_caption=chosen("default_caption"),
        captions=CaptionOptions(
            chosen("trigger"), chosen("shuffle_tags"), chosen("keep_tags"), chosen("tag_separator"),
            chosen("tag_dropout"),
        ),
        masks=chosen("masks"),
        mask_background=data.mask_background,
        resolution=side,
        shapes=chosen("shapes"),
        step=step,
        smallest=smallest,
        largest=max(chosen("largest_side") or side * 2, side),
        crops=data.crops,
        flip=chosen("flip"),
    )  # fmt: skip


def one_line(text: str | None) -> str | None:
    """`text` with every stretch of white space as one space."""
    return None if text is None else " ".join(text.split())


def _required(path: Path | None) -> Path:
    assert path is not None, "the section holds a path or sources"
    return path


def _check_weights(sources: Sequence[Source]) -> None:
    weighted = [source for source in sources if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        lacking = next(source for source in sources if source.weight is None)
        raise RecipeError(
            f"data.sources: {lacking.path} has no weight while others have one; give every source a weight "
            "(its share of an epoch) or none"
        )
