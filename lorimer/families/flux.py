"""FLUX.1: a transformer of double and single streams over packed latents, CLIP and T5 (Black Forest Labs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lorimer.families._base import (
    CLIP,
    CLIP_TOKENIZER,
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
    unpack,
)
from lorimer.families._names_flux import FLUX
from lorimer.families._single_files import FLUX_FILE

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel


class Flux(Family):
    """See the module. dev, whose guidance was distilled into it, is trained at guidance 1, as sd-scripts
    advises; schnell takes none."""

    name = "flux"
    description = "FLUX.1 dev and schnell"
    pipeline = "FluxPipeline"
    parts: ClassVar = {
        "transformer": Part("diffusers", "FluxTransformer2DModel"),
        "text_encoder": CLIP,
        "text_encoder_2": T5,
        "vae": KL_VAE,
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": T5_TOKENIZER,
        "scheduler": SCHEDULER,
    }
    text_encoders = ("text_encoder", "text_encoder_2")
    # What sd-scripts calls `flux_shift`: sigmoid of a normal draw, then shifted as the sampler does.
    times: ClassVar = TimeSampling("sigmoid", shift="auto")
    guidance = 3.5
    kohya: ClassVar = FLUX
    single_file = FLUX_FILE

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        hidden, pooled, _ = pipeline.encode_prompt(list(captions), device=pipeline.text_encoder.device)
        return {"hidden": hidden, "pooled": pooled}

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy.shape[-2:]
        hidden = conditioning["hidden"]
        tokens = model.transformer(
            pack(noisy),
            timestep=times,
            guidance=times.new_ones(len(times)) if model.transformer.config.guidance_embeds else None,
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=hidden,
            txt_ids=hidden.new_zeros(hidden.shape[1], 3),
            img_ids=image_ids(height // 2, width // 2, noisy.device),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    @classmethod
    def sampling(cls, guidance: float, negative: list[str]) -> dict[str, Any]:
        """Guidance is told to the network; away from a negative prompt it takes two predictions, and the
        network is told none."""
        if any(negative):
            return {"guidance_scale": 1.0, "true_cfg_scale": guidance, "negative_prompt": negative}
        return {"guidance_scale": guidance}

    @classmethod
    def pixel_unit(cls, model: DiffusionModel) -> int:
        return 2 * cls.pixels_per_latent(model)
