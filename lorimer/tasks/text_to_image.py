"""Text to image: a latent diffusion model learns a style or a subject from captioned pictures.

Pictures go through the VAE and captions through the text encoders once, before the first step; what
comes out is kept on disk. Steps then run the denoiser alone, unless a text encoder is adapted too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import lorimer
from lorimer.tasks._base import Task
from lorimer.tasks._diffusion import DiffusionModel, alphas_cumprod, load_diffusion, sample
from lorimer.tasks._diffusion_loss import objective_loss
from lorimer.tasks._encoding_cache import default_cache_folder
from lorimer.tasks._grid import labelled_grid
from lorimer.tasks._noise import NoiseProcess, diffusion_process, flow_process
from lorimer.tasks._noise_draws import draw_noise, perturbed
from lorimer.tasks._objective_section import DiffusionObjective
from lorimer.tasks._picture_captions import with_trigger
from lorimer.tasks._picture_encoding import (
    CaptionEncoder,
    Example,
    Examples,
    LatentEncoder,
    collate,
    cut_captions,
    with_empty,
)
from lorimer.tasks._picture_reading import read_pictures
from lorimer.tasks._picture_sections import PictureData, PicturePreview
from lorimer.tasks._timesteps import automatic_shift

if TYPE_CHECKING:
    from PIL.Image import Image

    from lorimer.train.recipe import Recipe

_VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # fractions of the way to pure noise
_DEFAULT_PROMPTS = 4  # how many captions stand in for preview prompts that were not given


class TextToImage(Task):
    """Adapts the denoiser, and the text encoders where asked, of a latent picture model."""

    name = "text-to-image"
    description = "A picture model learns a style or a subject from captioned pictures"
    Data = PictureData
    Objective = DiffusionObjective
    Preview = PicturePreview

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._captions: list[str] = []
        self._validation: list[Example] = []
        self._notes: list[str] = []
        self._base_pictures: list[Image] | None = None

    def model(self) -> DiffusionModel:
        model = load_diffusion(self.recipe.model or "embedded")
        adapted = self.recipe.adapter.components or self.components(model)
        self._adapts_text = any(name in adapted for name in model.text_encoders)
        self._family = model.family
        self._prediction = model.prediction_type
        self._process = noise_process(model, self.recipe.objective)
        self._resolution = model.checked_resolution(self.recipe.data.resolution)
        return model

    def components(self, model: nn.Module) -> tuple[str, ...]:
        assert isinstance(model, DiffusionModel)
        return (model.family.denoiser,)

    def data(self, model: nn.Module) -> Dataset[Any]:
        assert isinstance(model, DiffusionModel)
        self._notes = []
        recipe = self.recipe
        found = read_pictures(
            recipe.data,
            self._resolution,
            unit=math.lcm(8, model.pixel_unit),
            seed=recipe.train.seed,
            prior_weight=recipe.objective.prior_weight,
        )
        self._notes += found.notes
        own = {picture.name: picture.caption for picture in found.training if not picture.is_regularisation}
        self._captions = list(own.values())
        folder = self.recipe.data.cache or default_cache_folder()
        latents, texts = (
            LatentEncoder(model, folder),
            None if self._adapts_text else CaptionEncoder(model, folder),
        )
        examples = Examples(
            latents,
            texts,
            found.training,
            draws=found.draws,
            groups=found.groups,
            variants=recipe.data.caption_variants,
            seed=recipe.train.seed,
        )
        validation = Examples(latents, texts, found.validation)
        self._validation = [validation[place] for place in range(len(validation))]
        self._empty = texts.of("") if texts else {}
        self._notes.append(examples.told())
        cut, limit = cut_captions(model, self._captions)
        if cut:
            self._notes.append(
                f"{cut} captions are longer than {limit} tokens; the text encoder sees their start"
            )
        return examples

    def collate(self, examples: Sequence[Any]) -> Any:
        return collate(examples)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        objective = self.recipe.objective
        mean, std = batch["mean"].float(), batch["std"].float()
        latents = mean + std * torch.randn(mean.shape).to(mean)
        noise = draw_noise(latents.shape, objective.noise_offset, objective.pyramid_noise)
        times = self._process.sample_times(len(latents), latents.shape[-2:])
        dropped = torch.rand(len(latents)) < objective.caption_dropout
        shown = perturbed(noise, objective.input_perturbation)
        text = self._text(batch, dropped)
        prediction = self._predict(model, latents, shown, times, batch["sizes"], text)
        return self._loss(prediction, latents, noise, times, objective, batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean loss over held-out pictures at five fixed timesteps with fixed noise, unweighted."""
        if not self._validation:
            return {}
        was_training = model.training
        model.eval()
        generator = torch.Generator().manual_seed(0)
        times = self._process.at(torch.tensor(_VALIDATION_TIMES))
        total = torch.zeros(())
        for example in self._validation:
            batch = collate([example] * len(times))
            latents = batch["mean"].float()
            noise = torch.randn(latents.shape, generator=generator)
            text = self._text(batch, torch.zeros(len(times), dtype=torch.bool))
            prediction = self._predict(model, latents, noise, times, batch["sizes"], text)
            total += self._loss(prediction, latents, noise, times, DiffusionObjective()).cpu()
        model.train(was_training)
        return {"validation_loss": total.item() / len(self._validation)}

    def preview(self, model: nn.Module, folder: Path, step: int) -> list[Path]:
        """One grid of prompts by strengths; at strength 0 stands the base model."""
        assert isinstance(model, DiffusionModel)
        wanted = self.recipe.preview
        prompts = self._captions[:_DEFAULT_PROMPTS] if wanted.prompts is None else wanted.prompts
        prompts = [with_trigger(prompt, self.recipe.data.trigger) for prompt in prompts]
        rows = [(prompt, seed) for prompt in prompts for seed in wanted.seeds]
        if not rows or not wanted.strengths:
            return []
        columns = [self._drawn(model, rows, strength) for strength in wanted.strengths]
        labels = [prompt if len(wanted.seeds) == 1 else f"{prompt}, seed {seed}" for prompt, seed in rows]
        heads = [f"strength {strength:g}" if strength else "base" for strength in wanted.strengths]
        path = folder / f"step-{step:06d}.png"
        folder.mkdir(parents=True, exist_ok=True)
        title = f"{self.recipe.name}, after {step} steps"
        labelled_grid(list(zip(*columns, strict=True)), labels, heads, title).save(path)
        return [path]

    def describe(self, model: nn.Module, data: Dataset[Any]) -> list[str]:
        return self._notes

    def metadata(self) -> dict[str, str]:
        model = self.recipe.model or "embedded"
        tags = [tag.strip() for caption in self._captions for tag in caption.split(",") if tag.strip()]
        frequency = {self.recipe.name: dict(Counter(tags).most_common())}  # kohya's shape: by set of pictures
        trigger = self.recipe.data.trigger
        return {
            "base_model": Path(model).name if Path(model).exists() else model,
            "family": self._family.name,
            **({"trigger": trigger} if trigger else {}),
            "resolution": str(self._resolution),
            "prediction_type": self._prediction,
            "pictures": str(len(self._captions)),
            "tag_frequency": json.dumps(frequency, ensure_ascii=False),
        }

    def _text(self, batch: dict[str, Any], dropped: Tensor) -> dict[str, Any]:
        """What the model is told of the captions, but for those that are dropped (batch,): conditioning from
        the cache, or the texts where a text encoder learns."""
        if self._adapts_text:
            kept = zip(batch["caption"], dropped.tolist(), strict=True)
            return {"captions": ["" if gone else caption for caption, gone in kept]}
        return {"conditioning": with_empty(batch["text"], self._empty, dropped)}

    def _predict(
        self,
        model: nn.Module,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        sizes: Tensor,
        text: dict[str, Any],
    ) -> Tensor:
        """What the model says of the latents with noise in them."""
        device = next(model.parameters()).device
        noisy = self._process.add_noise(latents.to(device), noise.to(device), times.to(device))
        conditioning = {"sizes": sizes, **text.get("conditioning", {})}
        conditioning = {name: value.to(device) for name, value in conditioning.items()}
        return model(noisy, times.to(device), conditioning, text.get("captions"))

    def _loss(
        self,
        prediction: Tensor,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        objective: DiffusionObjective,
        batch: Mapping[str, Any] = {},
    ) -> Tensor:
        device = prediction.device
        mask, weights = batch.get("mask"), batch.get("weight")
        return objective_loss(
            prediction, latents.to(device), noise.to(device), times.to(device), self._process, objective,
            mask=None if mask is None else mask.to(device),
            example_weights=None if weights is None else weights.to(device),
        )  # fmt: skip

    def _drawn(self, model: DiffusionModel, rows: list[tuple[str, int]], strength: float) -> list[Image]:
        """One column of the preview. The base model's pictures never change, so they are drawn once."""
        if strength == 0.0 and self._base_pictures is not None:
            return self._base_pictures
        wanted = self.recipe.preview
        with lorimer.strength(model, strength):
            pictures = sample(
                model,
                [prompt for prompt, _ in rows],
                [seed for _, seed in rows],
                steps=wanted.steps,
                guidance=wanted.guidance,
                negative_prompt=wanted.negative_prompt,
                resolution=self._resolution,
            )
        if strength == 0.0:
            self._base_pictures = pictures
        return pictures


def noise_process(model: DiffusionModel, objective: DiffusionObjective) -> NoiseProcess:
    """How noise is mixed into this model's latents, as the recipe's objective has it."""
    if model.family.process == "diffusion":
        return diffusion_process(alphas_cumprod(model.scheduler), model.prediction_type, objective)
    sampler = dict(model.scheduler.config)
    patch = max(1, model.pixel_unit // model.family.pixels_per_latent(model))
    return flow_process(model.family.times, objective, lambda tokens: automatic_shift(sampler, tokens), patch)
