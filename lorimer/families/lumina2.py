"""Lumina-Image 2.0: one stream of picture and text tokens, Gemma 2 as text encoder (Qin et al. 2025, arXiv
2503.21758)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lorimer.families._base import (
    KL_VAE,
    SCHEDULER,
    Conditioning,
    Family,
    Part,
    TimeSampling,
    trimmed,
)
from lorimer.families._names_lumina2 import LUMINA2

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel


class Lumina2(Family):
    """See the module. The network counts time from the noise, and predicts the way to it backwards."""

    name = "lumina2"
    description = "Lumina-Image 2.0"
    pipeline = "Lumina2Pipeline"
    parts: ClassVar = {
        "transformer": Part("diffusers", "Lumina2Transformer2DModel"),
        "text_encoder": Part("transformers", "Gemma2Model"),
        "vae": KL_VAE,
        "tokenizer": Part("transformers", "GemmaTokenizer", "tokenizer"),
        "scheduler": SCHEDULER,
    }
    # Sigmoid of a normal draw, shifted as the sampler does: 6 at 1024 pixels, sd-scripts' default too.
    times: ClassVar = TimeSampling("sigmoid", shift="auto")
    kohya: ClassVar = LUMINA2

    @classmethod
    def idle(cls, model: DiffusionModel) -> tuple[str, ...]:
        """Of the text encoder the layer before the last is read."""
        last = model.text_encoder.config.num_hidden_layers - 1
        return (f"text_encoder.layers.{last}", "text_encoder.norm")

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        """A caption follows the system prompt; that of a dropped caption is dropped with it, as the pipeline
        does for a negative prompt."""
        dropped = [not caption for caption in captions]
        hidden, mask, empty, empty_mask = pipeline.encode_prompt(
            list(captions),
            do_classifier_free_guidance=any(dropped),
            negative_prompt=[""] * len(captions),
            device=pipeline.text_encoder.device,
        )
        if any(dropped):
            rows = torch.tensor(dropped, device=hidden.device).view(-1, 1)
            mask = torch.where(rows, empty_mask, mask)
            hidden = torch.where(rows.unsqueeze(-1), empty, hidden)
        return trimmed(hidden, mask)

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        return -model.transformer(
            noisy,
            timestep=1 - times,
            encoder_hidden_states=conditioning["hidden"],
            encoder_attention_mask=conditioning["mask"],
            return_dict=False,
        )[0]

    @classmethod
    def resolution(cls, model: DiffusionModel) -> int:
        return int(model.transformer.config.sample_size) * cls.pixels_per_latent(model)
