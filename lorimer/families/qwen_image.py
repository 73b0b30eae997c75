"""Qwen-Image: a transformer over picture and text tokens, Qwen2.5-VL as text encoder, a VAE made for films
(Wu et al. 2025, arXiv 2508.02324)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lorimer.families._base import (
    QWEN_TOKENIZER,
    SCHEDULER,
    Conditioning,
    Family,
    Part,
    TimeSampling,
    pack,
    unpack,
)
from lorimer.families._names import FileNames, unchanged
from lorimer.families._names_text import language_names
from lorimer.families._names_transformers import ADDED_QKV, QKV, transformer_names, within

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel

_LONGEST = 512  # tokens of a caption that the pipeline takes

# What files call its layers: what diffusers does, whose code was the first.
_BLOCK = (
    *within("attn", (*QKV, *ADDED_QKV, "to_out.0", "to_add_out")),
    *(f"{stream}_{layer}" for stream in ("img", "txt") for layer in ("mod.1", "mlp.net.0.proj", "mlp.net.2")),
)
_AROUND = ("img_in", "txt_in", "norm_out.linear", "proj_out")

_NAMES = FileNames(
    {
        "transformer": transformer_names(
            *unchanged("", _AROUND),
            *unchanged("time_text_embed.timestep_embedder", ("linear_1", "linear_2")),
            *unchanged("transformer_blocks.{}", _BLOCK),
        ),
        "text_encoder": language_names(
            "lora_te_", "qwen", "qwen25_7b", root="model.language_model.", count=152064
        ),
    },
    architecture="qwen-image",
    base_version="qwen_image",
    known_as=("qwen",),
)


class QwenImage(Family):
    """See the module."""

    name = "qwen-image"
    description = "Qwen-Image"
    pipeline = "QwenImagePipeline"
    parts: ClassVar = {
        "transformer": Part("diffusers", "QwenImageTransformer2DModel"),
        "text_encoder": Part("transformers", "Qwen2_5_VLForConditionalGeneration"),
        "vae": Part("diffusers", "AutoencoderKLQwenImage"),
        "tokenizer": QWEN_TOKENIZER,
        "scheduler": SCHEDULER,
    }
    # What musubi-tuner calls `qwen_shift`: sigmoid of a normal draw, then shifted as the sampler does.
    times: ClassVar = TimeSampling("sigmoid", shift="auto")
    kohya: ClassVar = _NAMES

    @classmethod
    def idle(cls, model: DiffusionModel) -> tuple[str, ...]:
        """The text encoder's eyes and its head; in the last block what is made of the text."""
        last = f"transformer.transformer_blocks.{model.transformer.config.num_layers - 1}"
        of_text = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")
        encoder = ("text_encoder.model.visual", "text_encoder.lm_head")
        return (*encoder, *(f"{last}.{name}" for name in of_text))

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        hidden, mask = pipeline.encode_prompt(
            list(captions), device=pipeline.text_encoder.device, max_sequence_length=_LONGEST
        )
        if mask is None:  # nothing is padded
            mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        return {"hidden": hidden, "mask": mask}

    @classmethod
    def scale_latents(cls, model: DiffusionModel, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Each channel has a mean and a deviation of its own."""
        config = model.vae.config
        shift, scale = (
            mean.new_tensor(each).view(-1, 1, 1) for each in (config.latents_mean, config.latents_std)
        )
        return (mean - shift) / scale, std / scale

    @classmethod
    def encode_pixels(cls, model: DiffusionModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """A picture is a film of one frame."""
        posterior = model.vae.encode(pixels.unsqueeze(2)).latent_dist
        return cls.scale_latents(model, posterior.mean.squeeze(2), posterior.std.squeeze(2))

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy.shape[-2:]
        tokens = model.transformer(
            pack(noisy),
            timestep=times,
            encoder_hidden_states=conditioning["hidden"],
            encoder_hidden_states_mask=conditioning["mask"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    @classmethod
    def sampling(cls, guidance: float, negative: list[str]) -> dict[str, Any]:
        return {"true_cfg_scale": guidance, "negative_prompt": negative}

    @classmethod
    def pixels_per_latent(cls, model: DiffusionModel) -> int:
        factor: int = 2 ** len(model.vae.config.temperal_downsample)
        return factor
