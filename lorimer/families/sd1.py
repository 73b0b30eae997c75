"""Stable Diffusion 1: a U-Net and one CLIP text encoder (Rombach et al. 2021, arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lorimer.families._base import (
    CLIP,
    CLIP_TOKENIZER,
    KL_VAE,
    SCHEDULER,
    Conditioning,
    Config,
    Family,
    Part,
)
from lorimer.families._layouts import PLAIN, UNET_INPUT, clip_layout, unet_layout, vae_layout
from lorimer.families._names import FileNames
from lorimer.families._names_text import clip_names
from lorimer.families._names_unet import unet_names
from lorimer.families._single_file import SingleFile

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel


class StableDiffusion1(Family):
    """See the module."""

    name = "sd1"
    description = "Stable Diffusion 1.x, and the small model that lorimer ships"
    pipeline = "StableDiffusionPipeline"
    pipeline_options: ClassVar = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    parts: ClassVar = {
        "unet": Part("diffusers", "UNet2DConditionModel"),
        "text_encoder": CLIP,
        "vae": KL_VAE,
        "tokenizer": CLIP_TOKENIZER,
        "scheduler": SCHEDULER,
    }
    denoiser = "unet"
    targets = ("all-linear",)
    process = "diffusion"
    guidance = 7.5
    kohya: ClassVar = FileNames(
        {
            "unet": unet_names(4, (0, 1, 2), native=False),
            "text_encoder": clip_names("lora_te_", "clip_l"),
        },
        architecture="stable-diffusion-v1",
        base_version="sd_v1",
        known_as=("sd_1", "sd1"),
        side=512,
        widths={"attn2.to_k": 768, "attn2.to_v": 768, "self_attn.q_proj": 768},
        header={"ss_v2": "False"},
    )
    single_file = SingleFile(
        "sd1",
        {**UNET_INPUT, "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (None, 768)},
        {
            "unet": lambda config: (unet_layout(config), PLAIN),
            "vae": lambda config: (vae_layout(config), PLAIN),
            "text_encoder": lambda _: (clip_layout("cond_stage_model.transformer."),),
        },
    )
    clip_skip = True
    wide: ClassVar[bool] = False  # whether captions come from the second version's larger text encoder

    @classmethod
    def fits(cls, configs: Mapping[str, Config]) -> bool:
        unet = configs.get("unet", {})
        return (
            super().fits(configs)
            and unet.get("addition_embed_type") != "text_time"  # the embedded model has "text"
            and (unet.get("cross_attention_dim") == 1024) == cls.wide
        )

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        hidden, _ = pipeline.encode_prompt(
            list(captions), pipeline.text_encoder.device, 1, False, clip_skip=clip_skip
        )
        return {"hidden": hidden}

    @staticmethod
    def mended(pipeline: Any, clip_skip: int | None = None) -> Any:
        """For `clip_skip` diffusers looks for a level that CLIP no longer has in transformers 5."""
        encoder = pipeline.text_encoder
        if clip_skip and not hasattr(encoder, "text_model"):
            encoder.__dict__["text_model"] = encoder  # no child, or it would be its own
        return pipeline

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        return model.unet(noisy, times, encoder_hidden_states=conditioning["hidden"], return_dict=False)[0]

    @classmethod
    def resolution(cls, model: DiffusionModel) -> int:
        return int(model.unet.config.sample_size) * cls.pixel_unit(model)
