"""Concept slider: an adapter that moves along one attribute, as far as its strength says.

Between two prompts that differ in the attribute the frozen model sees a direction. The adapter learns to
go that way at strength 1 and the other way at strength -1 (Gandikota et al. 2023, arXiv 2311.12092,
equation 8), from words alone; no pictures are needed:

    wanted(±) = f(x_t, target) ± g · (f(x_t, positive) - f(x_t, negative))         f: the frozen model

where x_t are latents that the adapted model draws itself, from noise to a random step on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

import lorimer
from lorimer.families._base import Conditioning
from lorimer.tasks._base import Section
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion
from lorimer.tasks._diffusion_loss import weighted_loss
from lorimer.tasks._model_files import shown_name
from lorimer.tasks._noise import NoiseProcess
from lorimer.tasks._objective_section import DiffusionObjective
from lorimer.tasks._picture_encoding import Example, stacked
from lorimer.tasks._picture_preview import Previews
from lorimer.tasks._picture_task import PictureTask
from lorimer.tasks._preview_section import PicturePreview
from lorimer.tasks._processes import noise_process

if TYPE_CHECKING:
    from lorimer.train.recipe import Recipe

_ROLES = ("target", "positive", "negative")


class Direction(Section):
    """One direction: three prompts."""

    target: str
    """What the slider acts on, such as `a person`; `""` for everything."""
    positive: str
    """The same with the attribute, such as `a person, smiling`: strength 1."""
    negative: str
    """The same with its opposite, such as `a person, frowning`: strength -1."""


class SliderData(Section):
    """The directions; an example is one of them. Several, such as one for each age, keep the slider from
    moving more than what they share."""

    directions: Annotated[tuple[Direction, ...], Field(min_length=1)]
    """What is learned. Add what must not change to both prompts of a pair."""
    resolution: PositiveInt | None = None
    """Side of the squares that are drawn, in pixels; null takes the model's own."""

    @model_validator(mode="after")
    def _have_a_direction(self) -> SliderData:
        for each in self.directions:
            if each.positive == each.negative:
                raise ValueError(f"positive and negative are both {each.positive!r}: there is no direction")
        return self


class SliderObjective(Section):
    """How far the attribute moves, and where on the way to the picture it is learned."""

    guidance: PositiveFloat = 1.0
    """g: how far strength 1 goes, in differences between the two prompts."""
    drawing_steps: PositiveInt = 20
    """Steps from noise to picture; each example is drawn up to a random one of them."""
    drawing_guidance: PositiveFloat = 3.0
    """Classifier-free guidance of these drawings."""
    timestep_range: tuple[float, float] = (0.1, 0.9)
    """The smallest and largest share of noise that is learned at."""

    @model_validator(mode="after")
    def _is_a_range(self) -> SliderObjective:
        low, high = self.timestep_range
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(
                "timestep_range is [smallest, largest], the first below the second, within 0 and 1"
            )
        return self


class SliderPreview(PicturePreview):
    """Pictures drawn during training, always with the same seeds."""

    aliases: ClassVar[Mapping[str, str]] = PicturePreview.aliases

    strengths: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    """One column each; 0 is the base model."""


class ConceptSlider(PictureTask):
    """Adapts the denoiser so that its strength moves one attribute."""

    name = "concept-slider"
    description = "A picture model learns one attribute between two prompts, to be slid by the strength"
    Data = SliderData
    Objective = SliderObjective
    Preview = SliderPreview

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._previews = Previews(recipe.preview, recipe.name)

    def model(self) -> DiffusionModel:
        model = load_diffusion(self.recipe.model or "embedded", self.recipe.train.weights_dtype())
        self._family = model.family
        self._process: NoiseProcess = noise_process(model, DiffusionObjective())
        self._resolution = model.checked_resolution(self.recipe.data.resolution)
        return model

    def data(self, model: nn.Module) -> Dataset[Any]:
        assert isinstance(model, DiffusionModel)
        self._empty = _conditioning(model, "")
        blank = torch.zeros(1, 3, self._resolution, self._resolution)
        self._latent_shape = model.encode_pictures(blank)[0].shape[1:]
        side = self._resolution
        self._sizes = torch.tensor([side, side, 0, 0, side, side])
        return _Directions(
            [
                {role: _conditioning(model, getattr(each, role)) for role in _ROLES}
                for each in self.recipe.data.directions
            ]
        )

    def collate(self, examples: Sequence[Any]) -> Any:
        return {role: stacked([each[role] for each in examples]) for role in _ROLES}

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Half of it at strength 1, half at -1, from the same noise."""
        objective = self.recipe.objective
        assert isinstance(model, DiffusionModel)
        device = next(model.denoiser.parameters()).device
        count = len(next(iter(batch["target"].values())))
        noise = torch.randn(count, *self._latent_shape).to(device)
        fractions, stop = self._path()
        total = torch.zeros((), device=device)
        for sign in (1.0, -1.0):
            with torch.no_grad(), lorimer.strength(model, sign):
                noisy = self._drawn(model, noise, batch["target"], fractions[: stop + 1])
            times = self._process.at(fractions[stop : stop + 1]).expand(count).to(device)
            with torch.no_grad(), lorimer.disabled(model):
                plain, up, down = (self._predict(model, noisy, times, batch[role]) for role in _ROLES)
            wanted = plain + sign * objective.guidance * (up - down)
            with lorimer.strength(model, sign):
                prediction = self._predict(model, noisy, times, batch["target"])
            total = total + weighted_loss(prediction, wanted) / 2
        return total

    def preview(self, model: nn.Module, folder: Path, step: int) -> list[Path]:
        assert isinstance(model, DiffusionModel)
        prompts = self.recipe.preview.prompts
        if prompts is None:
            prompts = list(dict.fromkeys(each.target for each in self.recipe.data.directions))
        return self._previews.write(model, prompts, folder, step, self._resolution)

    def metadata(self) -> dict[str, str]:
        first = self.recipe.data.directions[0]
        return {
            "base_model": shown_name(self.recipe.model or "embedded"),
            "family": self._family.name,
            "resolution": str(self._resolution),
            "usage_hint": f"strength 1: {first.positive}; strength -1: {first.negative}",
        }

    def _path(self) -> tuple[Tensor, int]:
        """(shares of noise from 1 down to 0 of a drawing, the place among them to stop and learn at)."""
        objective = self.recipe.objective
        fractions = torch.linspace(1.0, 0.0, objective.drawing_steps + 1)
        low, high = objective.timestep_range
        inside = torch.nonzero((fractions >= low) & (fractions <= high)).flatten()
        if not len(inside):
            inside = (fractions - (low + high) / 2).abs().argmin().reshape(1)
        return fractions, int(inside[torch.randint(len(inside), ())])

    def _drawn(self, model: nn.Module, noise: Tensor, text: Conditioning, fractions: Tensor) -> Tensor:
        """Latents on the way from `noise` to a picture, at the last of `fractions`: DDIM without added noise
        (Song et al. 2020, arXiv 2010.02502, equation 12), which for a flow is Euler's method."""
        process, scale = self._process, self.recipe.objective.drawing_guidance
        noisy = noise
        empty = stacked([self._empty] * len(noise))
        for here, there in pairwise(fractions):
            times = process.at(here.reshape(1)).expand(len(noise)).to(noise.device)
            after = process.at(there.reshape(1)).expand(len(noise)).to(noise.device)
            without = self._predict(model, noisy, times, empty)
            prediction = without + scale * (self._predict(model, noisy, times, text) - without)
            clean = process.denoised(prediction, noisy, times)
            signal, spread = process.along(noisy, times)
            noisy = process.add_noise(clean, (noisy - signal * clean) / spread, after)
        return noisy

    def _predict(self, model: nn.Module, noisy: Tensor, times: Tensor, text: Conditioning) -> Tensor:
        conditioning = {name: value.to(noisy.device) for name, value in text.items()}
        conditioning["sizes"] = self._sizes.to(noisy.device).expand(len(noisy), 6)
        return model(noisy, times, conditioning).float()


class _Directions(Dataset[Example]):
    """Conditioning of each direction's three prompts."""

    def __init__(self, directions: list[Example]) -> None:
        self.directions = directions

    def __len__(self) -> int:
        return len(self.directions)

    def __getitem__(self, index: int) -> Example:
        return self.directions[index]


def _conditioning(model: DiffusionModel, prompt: str) -> Conditioning:
    return {name: value[0].cpu() for name, value in model.encode_texts([prompt]).items()}
