"""Stable Diffusion XL: a U-Net told the picture's size and crop, two CLIP text encoders (Podell et al. 2023,
arXiv 2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lorimer.families._base import (
    CLIP,
    CLIP_PROJECTED,
    CLIP_TOKENIZER,
    KL_VAE,
    SCHEDULER,
    Conditioning,
    Config,
    Family,
    Part,
)
from lorimer.families._layouts import (
    PLAIN,
    UNET_INPUT,
    clip_layout,
    open_clip_layout,
    unet_layout,
    vae_layout,
)
from lorimer.families._names import FileNames
from lorimer.families._names_text import clip_names
from lorimer.families._names_unet import unet_names
from lorimer.families._single_file import SingleFile

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel


class StableDiffusionXL(Family):
    """See the module."""

    name = "sdxl"
    description = "Stable Diffusion XL and its descendants"
    pipeline = "StableDiffusionXLPipeline"
    pipeline_options: ClassVar = {"add_watermarker": False}
    pipeline_settings = ("force_zeros_for_empty_prompt",)
    parts: ClassVar = {
        "unet": Part("diffusers", "UNet2DConditionModel"),
        "text_encoder": CLIP,
        "text_encoder_2": CLIP_PROJECTED,
        "vae": KL_VAE,
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_TOKENIZER,
        "scheduler": SCHEDULER,
    }
    denoiser = "unet"
    targets = ("all-linear",)
    text_encoders = ("text_encoder", "text_encoder_2")
    process = "diffusion"
    guidance = 5.0
    kohya: ClassVar = FileNames(
        {
            "unet": unet_names(3, (1, 2), native=True),
            "text_encoder": clip_names("lora_te1_", "clip_l"),
            "text_encoder_2": clip_names("lora_te2_", "clip_g", level=""),
        },
        architecture="stable-diffusion-xl-v1-base",
        base_version="sdxl_base_v1-0",
        known_as=("sdxl", "stable-diffusion-xl"),
        widths={"attn2.to_k": 2048, "attn2.to_v": 2048},
        header={"ss_v2": "False"},
    )
    single_file = SingleFile(
        "sdxl",
        {
            **UNET_INPUT,
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (None, 2048),
            "label_emb.0.0.weight": (None, 2816),
        },
        {
            "unet": lambda config: (unet_layout(config), PLAIN),
            "vae": lambda config: (vae_layout(config), PLAIN),
            "text_encoder": lambda _: (clip_layout("conditioner.embedders.0.transformer."),),
            "text_encoder_2": lambda _: (
                open_clip_layout("conditioner.embedders.1.model.", level="text_model."),
                clip_layout("conditioner.embedders.1.transformer."),
            ),
        },
    )

    @classmethod
    def fits(cls, configs: Mapping[str, Config]) -> bool:
        return super().fits(configs) and configs["unet"].get("addition_embed_type") == "text_time"

    @classmethod
    def idle(cls, model: DiffusionModel) -> tuple[str, ...]:
        """Of the first text encoder the layer before the last is read."""
        last = model.text_encoder.config.num_hidden_layers - 1
        return (f"text_encoder.encoder.layers.{last}", "text_encoder.final_layer_norm")

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        hidden, _, pooled, _ = pipeline.encode_prompt(
            list(captions),
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip,
        )
        if pipeline.config.force_zeros_for_empty_prompt:
            # What such a model was given in place of captions that were dropped, and is given without a
            # negative prompt. Multiplied, so that a batch of dropped captions still has gradients.
            kept = torch.tensor([bool(caption) for caption in captions], device=hidden.device).to(hidden)
            hidden, pooled = hidden * kept.view(-1, 1, 1), pooled * kept.view(-1, 1)
        return {"hidden": hidden, "pooled": pooled}

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["sizes"]}
        return model.unet(
            noisy,
            times,
            encoder_hidden_states=conditioning["hidden"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    @classmethod
    def sampling(cls, guidance: float, negative: list[str]) -> dict[str, Any]:
        """Without a negative prompt it is left to the pipeline what is guided away from."""
        return {"guidance_scale": guidance, "negative_prompt": negative if any(negative) else None}

    @classmethod
    def resolution(cls, model: DiffusionModel) -> int:
        return int(model.unet.config.sample_size) * cls.pixel_unit(model)
