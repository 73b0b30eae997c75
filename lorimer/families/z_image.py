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
from lorimer.families._names_z_image import Z_IMAGE

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel


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
    kohya: ClassVar = Z_IMAGE

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
