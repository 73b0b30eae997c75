"""Judging a picture adapter while it trains, by pictures it draws and without any other network.

A validation loss does not say whether an adapter gives the training pictures back, draws one picture
whatever the seed, or has changed what it was not asked to. Three numbers do; all compare features
(`_picture_features`) by their Euclidean distance.

    diversity    mean distance among pictures of one caption with different seeds, over the base model's:
                 1 is as varied as before, 0 is always the same picture.
    memorising   the probability that a drawn picture lies nearer to its nearest training picture than a
                 picture that was never trained on does to its own: 0.5 is nothing to see, 1 is copies. The
                 pictures never trained on are those held out; where there are none, each training picture
                 takes its turn against the others.
    drift        mean distance between the adapter's and the base model's picture of an unrelated prompt at
                 the same seed, over that between base pictures of different such prompts: 0 is unchanged, 1
                 is as different as another prompt's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

import lorimer
from lorimer.tasks._diffusion import DiffusionModel, sample
from lorimer.tasks._noise import NoiseProcess
from lorimer.tasks._picture_data import Picture
from lorimer.tasks._picture_encoding import Examples
from lorimer.tasks._picture_features import PictureFeatures, apart_within
from lorimer.tasks._preview_section import Judging

if TYPE_CHECKING:
    from PIL.Image import Image

Item = TypeVar("Item")

_MOST_PICTURES = 1000  # a sample of them says as much, and each costs a run of the denoiser
_TINY = 1e-6


@dataclass(frozen=True)
class Known:
    """A picture that the judge knows.

    Attributes:
        name: crops and mirror images of one file have one name.
        latents: gives its latents (channels, height, width).
    """

    name: str
    latents: Callable[[], Tensor]


@dataclass
class Judge:
    """Draws with the adapter and measures; what the base model draws is drawn once.

    Attributes:
        wanted: how much is drawn.
        process: how noise is mixed into the model's latents.
        captions: of the pictures that are learned, with the trigger word.
        training, held_out: the pictures themselves.
        sampling: further arguments of `sample`, such as guidance and resolution.
    """

    wanted: Judging
    process: NoiseProcess
    captions: Sequence[str]
    training: Sequence[Known]
    held_out: Sequence[Known] = ()
    sampling: dict[str, Any] = field(default_factory=dict)
    _yardstick: _Yardstick | None = None

    def __call__(self, model: DiffusionModel) -> dict[str, float]:
        """`diversity`, `memorising` and `drift` of the adapter that is on `model`; a number is left out where
        there is nothing to compare with."""
        features = PictureFeatures(model, self.process)
        if self._yardstick is None:
            with lorimer.disabled(model):
                self._yardstick = self._measured(features)
        base = self._yardstick
        drawn, unrelated = self._drawn(features)
        return {
            name: value
            for name, value in (
                ("diversity", apart_within(drawn, self.wanted.seeds) / base.apart),
                ("memorising", base.nearer(drawn)),
                ("drift", base.moved(unrelated)),
            )
            if value == value  # not NaN
        }

    def _measured(self, features: PictureFeatures) -> _Yardstick:
        training, held_out = evenly(self.training, _MOST_PICTURES), evenly(self.held_out, _MOST_PICTURES)
        known = features([each.latents() for each in training])
        if held_out:
            away = torch.cdist(features([each.latents() for each in held_out]), known)
        else:
            away = torch.cdist(known, known)
            names = np.array([each.name for each in training])
            away[torch.from_numpy(names[:, None] == names[None, :])] = torch.inf
        drawn, unrelated = self._drawn(features)
        apart = max(apart_within(drawn, self.wanted.seeds), _TINY)
        return _Yardstick(known, away.min(1).values, apart, unrelated)

    def _drawn(self, features: PictureFeatures) -> tuple[Tensor, Tensor]:
        """Features of what the model draws now: of each caption with each seed, and of unrelated prompts."""
        model, seeds = features.model, self.wanted.seeds
        captions = [caption for caption in evenly(self.captions, self.wanted.captions) for _ in range(seeds)]
        prompts = [*captions, *self.wanted.prompts]
        numbers = [number % seeds for number in range(len(captions))] + [0] * len(self.wanted.prompts)
        pictures = sample(model, prompts, numbers, steps=self.wanted.steps, **self.sampling)
        rows = features([encoded(model, picture) for picture in pictures])
        return rows[: len(captions)], rows[len(captions) :]


@dataclass(frozen=True)
class _Yardstick:
    """What the adapter's pictures are held against.

    Attributes:
        known: features of the training pictures.
        away: of each picture that was not trained on, the distance to the nearest that was.
        apart: the mean distance among the base model's pictures of one caption.
        unrelated: features of the base model's pictures of unrelated prompts.
    """

    known: Tensor
    away: Tensor
    apart: float
    unrelated: Tensor

    def nearer(self, drawn: Tensor) -> float:
        """`memorising`, from the features of drawn pictures: the Mann-Whitney statistic of the distances to
        the nearest training picture, as a probability; NaN where there are no two pictures."""
        if not torch.isfinite(self.away).all():
            return torch.nan
        nearest = torch.cdist(drawn, self.known).min(1).values[:, None]
        return ((nearest < self.away).float() + 0.5 * (nearest == self.away).float()).mean().item()

    def moved(self, unrelated: Tensor) -> float:
        """`drift`, from the features of the adapter's pictures of unrelated prompts; NaN for fewer than two
        prompts."""
        if len(self.unrelated) < 2:
            return torch.nan
        moved = (unrelated - self.unrelated).norm(dim=1).mean().item()
        return moved / max(apart_within(self.unrelated, len(self.unrelated)), _TINY)


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, spread evenly over all."""
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def encoded(model: DiffusionModel, picture: Image) -> Tensor:
    """The latents (channels, height, width) of a drawn picture."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    mean, _ = model.encode_pictures(pixels[None].float() / 127.5 - 1)
    return mean[0].float().cpu()


def known_pictures(examples: Examples, pictures: Sequence[Picture]) -> list[Known]:
    """The `pictures` that `examples` were made of, but for those that only show the class."""

    def latents(key: str) -> Tensor:
        return examples.latents.cache[key]["mean"]

    return [
        Known(picture.name, partial(latents, entry.latents))
        for picture, entry in zip(pictures, examples.entries, strict=True)
        if not picture.is_regularisation
    ]
