"""Pictures of a class, drawn by the frozen model for prior preservation (Ruiz et al. 2022, arXiv 2208.12242).

They are kept in the cache under a hash of all that decides what they show, so they are drawn once for all
runs, and an interrupted drawing goes on. They are drawn in fixed groups: a batch of another size rounds
otherwise, and a picture must not depend on how many were there already.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from lorimer.errors import LorimerError
from lorimer.tasks._diffusion import DiffusionModel, sample
from lorimer.tasks._encoding_cache import fingerprint
from lorimer.tasks._picture_captions import CaptionOptions
from lorimer.tasks._picture_sections import PictureData, PictureSource, Prior
from lorimer.tasks._picture_sources import Source, resolved

if TYPE_CHECKING:
    from PIL.Image import Image

_GROUP = 4  # pictures that are drawn at once


def draw_prior(model: DiffusionModel, prior: Prior, resolution: int, cache: Path) -> tuple[Path, int]:
    """(the folder of the class's pictures, how many had to be drawn now). The model has no adapter yet.

    Args:
        resolution: their side in pixels.
        cache: the folder that all runs share.

    Raises:
        LorimerError: they cannot be written, or came out with NaN.
    """
    folder = cache / "prior" / _key(model, prior, resolution)
    numbers = range(prior.pictures)
    drawn = 0
    for start in range(0, prior.pictures, _GROUP):
        missing = [each for each in numbers[start : start + _GROUP] if not _file(folder, each).is_file()]
        if not missing:
            continue
        group = range(start, start + _GROUP)  # whole, also at the end
        pictures = sample(
            model,
            [prior.prompt] * _GROUP,
            [prior.seed + each for each in group],
            steps=prior.steps,
            guidance=prior.guidance,
            resolution=resolution,
            batch_size=_GROUP,
        )
        for each in missing:
            _write(pictures[each - start], _file(folder, each))
        drawn += len(missing)
    return folder, drawn


def prior_source(folder: Path, prior: Prior, data: PictureData, resolution: int, unit: int) -> Source:
    """The drawn pictures as a source of regularisation pictures: whole, with their prompt as caption, and
    without what else the recipe does to captions and masks."""
    named = PictureSource(path=folder, regularisation=True, default_caption=prior.prompt, flip=False)
    source = resolved(named, data, resolution, unit, nested=False)
    weight = sum(each.weight or 0.0 for each in data.sources) or None  # as much as all others together
    return replace(
        source,
        captions=CaptionOptions(),
        masks=None,
        shapes="square",
        resolution=resolution,
        crops=1,
        weight=weight,
    )


def _key(model: DiffusionModel, prior: Prior, resolution: int) -> str:
    parts = {
        name: fingerprint(part)
        if isinstance(part, nn.Module) or name.startswith("tokenizer")
        else dict(part.config)
        for name, part in model.parts.items()
        if part is not None
    }
    facts = {
        **prior.model_dump(exclude={"pictures"}),
        "side": resolution,
        "skip": model.clip_skip,
        "parts": parts,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"


def _write(picture: Image, path: Path) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            picture.save(file, format="PNG")
        Path(file.name).replace(path)
    except OSError as error:
        raise LorimerError(
            f"{path}: a picture of the class cannot be written: {error}; name another folder with data.cache"
        ) from error
