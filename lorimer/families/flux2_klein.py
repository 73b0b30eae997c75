"""FLUX.2 klein: as FLUX.1 with shared modulation, Qwen3 as text encoder, a VAE whose latents are packed and
normalised (Black Forest Labs)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from lorimer.errors import UsageError
from lorimer.families._base import (
    QWEN_TOKENIZER,
    SCHEDULER,
    Conditioning,
    Config,
    Family,
    Part,
    TimeSampling,
    image_ids,
)
from lorimer.families._names import FileNames, Rule, renamed
from lorimer.families._names_text import language_names
from lorimer.families._names_transformers import AROUND, embedder, flux_blocks, transformer_names

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel

_PATCH = 2  # latents of the VAE along a side that become one of the denoiser
_LAST_READ = 27  # layers of the text encoder, by the pipeline's default

# What files call its layers, as ComfyUI and diffusers' converters read them.
_FEED_FORWARD = {
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
_AROUND = {
    **AROUND,
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
}

_NAMES = FileNames(
    {
        "transformer": transformer_names(
            *renamed("", "", _AROUND),
            Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), halves_swapped=True),
            *embedder("time_in", "time_guidance_embed.timestep_embedder"),
            *embedder("guidance_in", "time_guidance_embed.guidance_embedder"),
            *flux_blocks(_FEED_FORWARD),
            *renamed(
                "single_blocks.{}",
                "single_transformer_blocks.{}",
                {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"},
            ),
        ),
        "text_encoder": language_names("lora_te_", "qwen", "qwen3_4b", root="model.", count=151936),
    },
    architecture="flux-2-klein",
    base_version="flux2",
    known_as=("flux-2", "flux.2"),
)


class Flux2Klein(Family):
    """See the module. Positions have four axes: picture, row, column, place in the text."""

    name = "flux2-klein"
    description = "FLUX.2 klein, base or distilled"
    pipeline = "Flux2KleinPipeline"
    pipeline_settings = ("is_distilled",)
    parts: ClassVar = {
        "transformer": Part("diffusers", "Flux2Transformer2DModel"),
        "text_encoder": Part("transformers", "Qwen3ForCausalLM"),
        "vae": Part("diffusers", "AutoencoderKLFlux2"),
        "tokenizer": QWEN_TOKENIZER,
        "scheduler": SCHEDULER,
    }
    # Sigmoid of a normal draw, shifted by the picture's size, as musubi-tuner's `flux2_shift`.
    times: ClassVar = TimeSampling("sigmoid", shift="auto")
    kohya: ClassVar = _NAMES

    @classmethod
    def fits(cls, configs: Mapping[str, Config]) -> bool:
        """FLUX.2 dev, which takes a guidance scale and reads captions with Mistral, is another family."""
        return super().fits(configs) and not configs["transformer"].get("guidance_embeds", True)

    @classmethod
    def idle(cls, model: DiffusionModel) -> tuple[str, ...]:
        """What lies behind the last of the text encoder's layers that are read."""
        behind = range(_LAST_READ, model.text_encoder.config.num_hidden_layers)
        layers = (f"text_encoder.model.layers.{layer}" for layer in behind)
        return (*layers, "text_encoder.model.norm", "text_encoder.lm_head")

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        hidden, _ = pipeline.encode_prompt(list(captions), device=pipeline.text_encoder.device)
        return {"hidden": hidden}

    @classmethod
    def scale_latents(cls, model: DiffusionModel, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        norm = model.vae.bn
        spread = (norm.running_var + model.vae.config.batch_norm_eps).sqrt().view(-1, 1, 1).to(mean)
        shift = norm.running_mean.view(-1, 1, 1).to(mean)
        return (pixel_unshuffle(mean, _PATCH) - shift) / spread, pixel_unshuffle(std, _PATCH) / spread

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy.shape[-2:]
        hidden = conditioning["hidden"]
        places = torch.arange(hidden.shape[1], device=noisy.device)
        image = image_ids(height, width, noisy.device)
        tokens = model.transformer(
            noisy.flatten(2).transpose(1, 2),
            timestep=times,
            encoder_hidden_states=hidden,
            txt_ids=torch.stack([*[torch.zeros_like(places)] * 3, places], dim=-1),
            img_ids=torch.cat([image, torch.zeros_like(image[:, :1])], dim=-1),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).reshape(noisy.shape)

    @classmethod
    def sampling(cls, guidance: float, negative: list[str]) -> dict[str, Any]:
        """The pipeline guides away from the empty caption, and a distilled model not at all.

        Raises:
            UsageError: there is a negative prompt.
        """
        if any(negative):
            raise UsageError("FLUX.2 klein takes no negative prompt; leave it empty")
        return {"guidance_scale": guidance}

    @classmethod
    def pixels_per_latent(cls, model: DiffusionModel) -> int:
        return _PATCH * super().pixels_per_latent(model)
