"""Chroma: FLUX.1 schnell with a small network in place of its modulation, T5 alone, real guidance (Lodestone
Rock 2025; the model card of Chroma1-HD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lorimer.families._base import (
    KL_VAE,
    SCHEDULER,
    T5,
    T5_TOKENIZER,
    Conditioning,
    Family,
    Part,
    TimeSampling,
    image_ids,
    pack,
    trimmed,
    unpack,
)
from lorimer.families._names import FileNames, renamed
from lorimer.families._names_text import t5_names
from lorimer.families._names_transformers import (
    AROUND,
    FEED_FORWARD,
    flux_blocks,
    flux_single_block,
    transformer_names,
)

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel

# What files call its layers, which are FLUX.1's without modulation.
_GUIDANCE = "distilled_guidance_layer"

_NAMES = FileNames(
    {
        "transformer": transformer_names(
            *renamed("", "", AROUND),
            *renamed(_GUIDANCE, _GUIDANCE, {"in_proj": "in_proj", "out_proj": "out_proj"}),
            *renamed(
                f"{_GUIDANCE}.layers.{{}}",
                f"{_GUIDANCE}.layers.{{}}",
                {"in_layer": "linear_1", "out_layer": "linear_2"},
            ),
            *flux_blocks(FEED_FORWARD),
            flux_single_block(),
            *renamed("single_blocks.{}", "single_transformer_blocks.{}", {"linear2": "proj_out"}),
        ),
        "text_encoder": t5_names("lora_te1_", "lora_te3_"),
    },
    architecture="chroma",
    base_version="chroma",
)


class Chroma(Family):
    """See the module. It was trained to see a caption and the first padding token behind it."""

    name = "chroma"
    description = "Chroma1"
    pipeline = "ChromaPipeline"
    parts: ClassVar = {
        "transformer": Part("diffusers", "ChromaTransformer2DModel"),
        "text_encoder": T5,
        "vae": KL_VAE,
        "tokenizer": T5_TOKENIZER,
        "scheduler": SCHEDULER,
    }
    times: ClassVar = TimeSampling("sigmoid")  # as sd-scripts advises for it
    kohya: ClassVar = _NAMES

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        hidden, _, mask, *_ = pipeline.encode_prompt(
            list(captions), device=pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        return trimmed(hidden, mask.bool())

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """Captions of one length at a time and without a mask, which diffusers forgets in half of the blocks
        where activations are recomputed."""
        lengths = conditioning["mask"].sum(1)
        predicted = torch.empty_like(noisy)
        for length in lengths.unique().tolist():
            rows = lengths == length
            hidden = conditioning["hidden"][rows, :length]
            predicted[rows] = _predict(model.transformer, noisy[rows], times[rows], hidden)
        return predicted

    @staticmethod
    def mended(pipeline: Any, clip_skip: int | None = None) -> Any:
        """diffusers hands its mask to the attention as numbers to add, which hides nothing (its issues 12116
        and 13619)."""
        prepare = pipeline._prepare_attention_mask

        def as_truth(attention_mask: Tensor | None = None, **sizes: Any) -> Tensor:
            truth = None if attention_mask is None else attention_mask.bool()
            return prepare(attention_mask=truth, **sizes)

        pipeline._prepare_attention_mask = as_truth
        return pipeline

    @classmethod
    def pixel_unit(cls, model: DiffusionModel) -> int:
        return 2 * cls.pixels_per_latent(model)


def _predict(transformer: Any, noisy: Tensor, times: Tensor, hidden: Tensor) -> Tensor:
    height, width = noisy.shape[-2:]
    tokens = transformer(
        pack(noisy),
        timestep=times,
        encoder_hidden_states=hidden,
        txt_ids=hidden.new_zeros(hidden.shape[1], 3),
        img_ids=image_ids(height // 2, width // 2, noisy.device),
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)
