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

from lorimer.errors import DataError
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion
from lorimer.tasks._diffusion_loss import objective_loss
from lorimer.tasks._encoding_cache import default_cache_folder
from lorimer.tasks._judging import Judge, known_pictures
from lorimer.tasks._model_files import shown_name
from lorimer.tasks._noise_draws import draw_noise, perturbed
from lorimer.tasks._objective_section import DiffusionObjective
from lorimer.tasks._picture_captions import with_trigger
from lorimer.tasks._picture_encoding import (
    CaptionEncoder,
    Examples,
    LatentEncoder,
    collate,
    cut_captions,
    with_empty,
)
from lorimer.tasks._picture_preview import Previews
from lorimer.tasks._picture_reading import read_pictures
from lorimer.tasks._picture_sections import PictureData
from lorimer.tasks._picture_sources import Source
from lorimer.tasks._picture_task import PictureTask
from lorimer.tasks._preview_section import PicturePreview
from lorimer.tasks._prior import draw_prior, prior_source
from lorimer.tasks._processes import follow_recipe, noise_process
from lorimer.tasks._tokens import add_tokens, rows_to_train

if TYPE_CHECKING:
    from lorimer.train.recipe import Recipe

_VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # fractions of the way to pure noise
_DEFAULT_PROMPTS = 4  # how many captions stand in for preview prompts that were not given


class TextToImage(PictureTask):
    """Adapts the denoiser, and the text encoders where asked, of a latent picture model."""

    name = "text-to-image"
    description = "A picture model learns a style or a subject from captioned pictures"
    Data = PictureData
    Objective = DiffusionObjective
    Preview = PicturePreview

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._captions: list[str] = []
        self._validation: Examples | None = None
        self._notes: list[str] = []
        self._judge: Judge | None = None
        self._previews = Previews(recipe.preview, recipe.name)

    def model(self) -> DiffusionModel:
        model = load_diffusion(self.recipe.model or "embedded", self.recipe.train.weights_dtype())
        adapted = self.recipe.adapter.components or self.components(model)
        follow_recipe(model, self.recipe)
        add_tokens(model, self.recipe.data.tokens)
        self._adapts_text = bool(model.tokens) or any(name in adapted for name in model.text_encoders)
        self._family = model.family
        self._prediction = model.prediction_type
        self._process = noise_process(model, self.recipe.objective)
        self._resolution = model.checked_resolution(self.recipe.data.resolution)
        return model

    def data(self, model: nn.Module) -> Dataset[Any]:
        assert isinstance(model, DiffusionModel)
        self._notes = []
        recipe = self.recipe
        folder = recipe.data.cache or default_cache_folder()
        found = read_pictures(
            recipe.data,
            self._resolution,
            unit=math.lcm(8, model.pixel_unit),
            seed=recipe.train.seed,
            prior_weight=recipe.objective.prior_weight,
            prior=self._prior(model, folder),
        )
        self._notes += found.notes
        own = {picture.name: picture.caption for picture in found.training if not picture.is_regularisation}
        self._captions = list(own.values())
        self._require_tokens_said()
        latents = LatentEncoder(model, folder)
        texts = None if self._adapts_text else CaptionEncoder(model, folder)
        examples = Examples(
            latents,
            texts,
            found.training,
            draws=found.draws,
            groups=found.groups,
            variants=recipe.data.caption_variants,
            seed=recipe.train.seed,
        )
        self._validation = Examples(latents, texts, found.validation)
        self._empty = texts.of("") if texts else {}
        if recipe.preview.judge is not None:
            self._judge = Judge(
                recipe.preview.judge,
                self._process,
                self._captions,
                known_pictures(examples, found.training),
                known_pictures(self._validation, found.validation),
                {
                    "guidance": recipe.preview.guidance,
                    "negative_prompt": recipe.preview.negative_prompt,
                    "resolution": self._resolution,
                },
            )
        self._notes.append(examples.told())
        cut, limit = cut_captions(model, self._captions)
        if cut:
            self._notes.append(
                f"{cut} captions are longer than {limit} tokens; the text encoder sees their start"
            )
        return examples

    def full(self, model: nn.Module) -> Mapping[str, Sequence[int] | None]:
        """The rows of new tokens."""
        assert isinstance(model, DiffusionModel)
        return rows_to_train(model)

    def idle_parts(self, model: nn.Module) -> Sequence[str]:
        """Text encoders that read captions in every step stay."""
        parts = super().idle_parts(model)
        return [name for name in parts if name == "vae" or not self._adapts_text]

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
        held_out = self._validation
        if not held_out:
            return {}
        was_training = model.training
        model.eval()
        generator = torch.Generator().manual_seed(0)
        times = self._process.at(torch.tensor(_VALIDATION_TIMES))
        total = torch.zeros(())
        for place in range(len(held_out)):
            batch = collate([held_out[place]] * len(times))
            latents = batch["mean"].float()
            noise = torch.randn(latents.shape, generator=generator)
            text = self._text(batch, torch.zeros(len(times), dtype=torch.bool))
            prediction = self._predict(model, latents, noise, times, batch["sizes"], text)
            total += self._loss(prediction, latents, noise, times, DiffusionObjective()).cpu()
        model.train(was_training)
        return {"validation_loss": total.item() / len(held_out)}

    @property
    def judges(self) -> bool:
        return self._judge is not None

    def judge(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, DiffusionModel) and self._judge is not None
        return self._judge(model)

    def preview(self, model: nn.Module, folder: Path, step: int) -> list[Path]:
        assert isinstance(model, DiffusionModel)
        prompts = self.recipe.preview.prompts
        if prompts is None:
            prompts = list(dict.fromkeys(self._captions))[:_DEFAULT_PROMPTS]
        prompts = [with_trigger(prompt, self.recipe.data.trigger) for prompt in prompts]
        return self._previews.write(model, prompts, folder, step, self._resolution)

    def describe(self, model: nn.Module, data: Dataset[Any]) -> list[str]:
        return self._notes

    def metadata(self) -> dict[str, str]:
        tags = [tag.strip() for caption in self._captions for tag in caption.split(",") if tag.strip()]
        frequency = {self.recipe.name: dict(Counter(tags).most_common())}  # kohya's shape: by set of pictures
        trigger = self.recipe.data.trigger
        return {
            "base_model": shown_name(self.recipe.model or "embedded"),
            "family": self._family.name,
            **({"trigger": trigger} if trigger else {}),
            "resolution": str(self._resolution),
            "prediction_type": self._prediction,
            "pictures": str(len(self._captions)),
            "tag_frequency": json.dumps(frequency, ensure_ascii=False),
        }

    def _prior(self, model: DiffusionModel, cache: Path) -> Source | None:
        """The pictures of the class that the recipe has the model draw."""
        data = self.recipe.data
        if data.prior is None:
            return None
        folder, drawn = draw_prior(model, data.prior, self._resolution, cache)
        before = data.prior.pictures - drawn
        self._notes.append(f"drew {drawn} pictures of {data.prior.prompt!r}, found {before} drawn before")
        return prior_source(folder, data.prior, data, self._resolution, math.lcm(8, model.pixel_unit))

    def _require_tokens_said(self) -> None:
        for token in self.recipe.data.tokens:
            if not any(token in caption for caption in self._captions):
                raise DataError(
                    f"data.tokens: no caption says {token}; write it into captions, or set data.trigger to it"
                )

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
        assert isinstance(model, DiffusionModel)
        device = next(model.denoiser.parameters()).device
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
