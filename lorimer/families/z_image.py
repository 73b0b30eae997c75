"""Z-Image: one stream of picture and text tokens, Qwen3 as text encoder (Cai et al. 2025, arXiv
2511.22699)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lorimer.families._base import (
    KL_VAE,
    QWEN_TOKENIZER,
    SCHEDULER,
    Conditioning,
    Family,
    Part,
    TimeSampling,
)
from lorimer.families._names import FileNames, Inner, Rule, renamed, unchanged
from lorimer.families._names_text import language_names
from lorimer.families._names_transformers import QKV, transformer_names, within

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel

# What files call its layers, as ComfyUI (comfy/utils.py, z_image_to_diffusers) reads them.
_BLOCK: Inner = {
    "attention.qkv": within("attention", QKV),
    "attention.out": "attention.to_out.0",
    **{name: name for name in within("feed_forward", ("w1", "w2", "w3"))},
}
_MODULATED: Inner = {**_BLOCK, "adaLN_modulation.0": "adaLN_modulation.0"}


def _blocks(name: str, inner: Inner) -> tuple[Rule, ...]:
    return renamed(f"{name}.{{}}", f"{name}.{{}}", inner)


_NAMES = FileNames(
    {
        "transformer": transformer_names(
            *_blocks("layers", _MODULATED),
            *_blocks("noise_refiner", _MODULATED),
            *_blocks("context_refiner", _BLOCK),
            *renamed("", "", {"x_embedder": "all_x_embedder.2-1"}),
            *renamed(
                "final_layer",
                "all_final_layer.2-1",
                {"linear": "linear", "adaLN_modulation.1": "adaLN_modulation.1"},
            ),
            *unchanged("", ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")),
        ),
        "text_encoder": language_names("lora_te_", "qwen", "qwen3_4b", root="", count=151936),
    },
    architecture="z-image",
    base_version="z_image",
    widths={"attention.to_q": 3840},
)


class ZImage(Family):
    """See the module. The network counts time from the noise, and predicts the way to it backwards."""

    name = "z-image"
    description = "Z-Image and Z-Image-Turbo"
    pipeline = "ZImagePipeline"
    parts: ClassVar = {
        "transformer": Part("diffusers", "ZImageTransformer2DModel"),
        "text_encoder": Part("transformers", "Qwen3Model"),
        "vae": KL_VAE,
        "tokenizer": QWEN_TOKENIZER,
        "scheduler": SCHEDULER,
    }
    times: ClassVar = TimeSampling("sigmoid", shift=2.0)  # as musubi-tuner advises for it
    guidance = 5.0
    kohya: ClassVar = _NAMES

    @classmethod
    def idle(cls, model: DiffusionModel) -> tuple[str, ...]:
        """Of the text encoder the layer before the last is read."""
        last = model.text_encoder.config.num_hidden_layers - 1
        return (f"text_encoder.layers.{last}", "text_encoder.norm")

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        rows, _ = pipeline.encode_prompt(
            list(captions), device=pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        ones = [torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows]
        return {
            "hidden": pad_sequence(rows, batch_first=True),
            "mask": pad_sequence(ones, batch_first=True),
        }

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        lengths = conditioning["mask"].sum(1).tolist()
        captions = [row[:length] for row, length in zip(conditioning["hidden"], lengths, strict=True)]
        frames = list(noisy.unsqueeze(2))  # each picture is a film of one frame
        backwards = model.transformer(frames, 1 - times, captions, return_dict=False)[0]
        return -torch.stack(list(backwards)).squeeze(2)

    @classmethod
    def sampling(cls, guidance: float, negative: list[str]) -> dict[str, Any]:
        """The pipeline's scale is 0 where there is no guidance."""
        return {"guidance_scale": guidance - 1, "negative_prompt": negative}

    @classmethod
    def pixel_unit(cls, model: DiffusionModel) -> int:
        return cls.pixels_per_latent(model) * int(model.transformer.config.all_patch_size[0])
