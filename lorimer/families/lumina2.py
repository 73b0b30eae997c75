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
from lorimer.families._names import FileNames, Rule, renamed
from lorimer.families._names_text import language_names
from lorimer.families._names_transformers import QKV, transformer_names, within

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel

# What files call its layers, as sd-scripts and ComfyUI read them.
_BLOCK = {
    "attention.out": "attn.to_out.0",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
}
_MODULATED = {**_BLOCK, "adaLN_modulation.1": "norm1.linear"}
_AROUND = {
    "x_embedder": "x_embedder",
    "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
    "cap_embedder.1": "time_caption_embed.caption_embedder.1",
    "final_layer.adaLN_modulation.1": "norm_out.linear_1",
    "final_layer.linear": "norm_out.linear_2",
}


def _blocks(name: str, inner: dict[str, str]) -> tuple[Rule, ...]:
    """Three heads of queries share one of keys and one of values."""
    path = f"{name}.{{}}"
    attention = Rule(f"{path}.attention.qkv", within(f"{path}.attn", QKV), (3, 1, 1))
    return (attention, *renamed(path, path, dict(inner)))


_NAMES = FileNames(
    {
        "transformer": transformer_names(
            *_blocks("layers", _MODULATED),
            *_blocks("noise_refiner", _MODULATED),
            *_blocks("context_refiner", _BLOCK),
            *renamed("", "", _AROUND),
        ),
        "text_encoder": language_names("lora_te_", "gemma", "gemma2_2b", root="", count=256000),
    },
    architecture="lumina-2",
    base_version="lumina2",
    known_as=("lumina",),
    widths={"attn.to_q": 2304},
)


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
    kohya: ClassVar = _NAMES

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
