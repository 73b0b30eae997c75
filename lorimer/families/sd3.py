"""Stable Diffusion 3 and 3.5: a transformer over picture and text tokens, two CLIP text encoders and T5
(Esser et al. 2024, arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lorimer.families._base import (
    CLIP_PROJECTED,
    CLIP_TOKENIZER,
    KL_VAE,
    SCHEDULER,
    T5,
    T5_TOKENIZER,
    Conditioning,
    Family,
    Part,
    TimeSampling,
)
from lorimer.families._names_sd3 import SD3
from lorimer.families._single_files import SD3_FILE

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel


class StableDiffusion3(Family):
    """See the module. Without T5 its tokens are zeros, which the model has met in training."""

    name = "sd3"
    description = "Stable Diffusion 3 and 3.5, with or without T5"
    pipeline = "StableDiffusion3Pipeline"
    parts: ClassVar = {
        "transformer": Part("diffusers", "SD3Transformer2DModel"),
        "text_encoder": CLIP_PROJECTED,
        "text_encoder_2": CLIP_PROJECTED,
        "text_encoder_3": replace(T5, optional=True),
        "vae": KL_VAE,
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_TOKENIZER,
        "tokenizer_3": replace(T5_TOKENIZER, optional=True),
        "scheduler": SCHEDULER,
    }
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    # "rf/lognorm(0.00, 1.00)", the best of the paper's table 1, with the shift that its sampler has.
    times: ClassVar = TimeSampling("logit-normal", shift="auto")
    guidance = 7.0
    kohya: ClassVar = SD3
    single_file = SD3_FILE

    @classmethod
    def idle(cls, model: DiffusionModel) -> tuple[str, ...]:
        """The last block makes nothing of the text any more."""
        attention = f"transformer.transformer_blocks.{model.transformer.config.num_layers - 1}.attn"
        norm = (f"{attention}.norm_added_q",) if model.transformer.config.qk_norm else ()
        return (f"{attention}.add_q_proj", *norm)

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        hidden, _, pooled, _ = pipeline.encode_prompt(
            list(captions),
            None,
            None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip,
        )
        return {"hidden": hidden, "pooled": pooled}

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        return model.transformer(
            noisy,
            timestep=times * 1000,
            encoder_hidden_states=conditioning["hidden"],
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )[0]

    @classmethod
    def resolution(cls, model: DiffusionModel) -> int:
        return int(model.transformer.config.sample_size) * cls.pixels_per_latent(model)
