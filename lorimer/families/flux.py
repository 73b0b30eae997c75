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
from lorimer.families._layout import Shapes
from lorimer.families._layouts import PLAIN, clip_layout, t5_layout, transformer_layout, vae_layout
from lorimer.families._names import FileNames, Rule, renamed
from lorimer.families._names_text import clip_names, t5_names
from lorimer.families._names_transformers import (
    AROUND,
    FEED_FORWARD,
    embedder,
    flux_blocks,
    flux_single_block,
    transformer_names,
)
from lorimer.families._single_file import SingleFile, blocks_in

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel

# What files call its layers, as ComfyUI (flux_to_diffusers) and sd-scripts read them.
_MODULATION = {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"}

_NAMES = FileNames(
    {
        "transformer": transformer_names(
            *renamed("", "", AROUND),
            Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), halves_swapped=True),
            *embedder("time_in", "time_text_embed.timestep_embedder"),
            *embedder("vector_in", "time_text_embed.text_embedder"),
            *embedder("guidance_in", "time_text_embed.guidance_embedder"),
            *flux_blocks({**FEED_FORWARD, **_MODULATION}),
            flux_single_block(),
            *renamed(
                "single_blocks.{}",
                "single_transformer_blocks.{}",
                {"linear2": "proj_out", "modulation.lin": "norm.linear"},
            ),
        ),
        "text_encoder": clip_names("lora_te1_", "clip_l"),
        # ComfyUI reads lora_te2_ too, which is how OneTrainer counts.
        "text_encoder_2": t5_names("lora_te3_", "lora_te2_"),
    },
    architecture="flux-1-dev",
    base_version="flux1",
    known_as=("flux.1", "flux-1"),
)


# How a single checkpoint file of it is laid out.
def _config(shapes: Shapes) -> dict[str, Any]:
    """FLUX.1 dev was distilled with guidance as an input, schnell without."""
    return {
        "num_layers": blocks_in(shapes, "double_blocks"),
        "num_single_layers": blocks_in(shapes, "single_blocks"),
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


_TENSORS = tuple(
    Rule(f"{native}.{long}_norm.scale", (f"{path}_{short}.weight",))
    for native, path in (
        ("double_blocks.{}.img_attn.norm", "transformer_blocks.{}.attn.norm"),
        ("double_blocks.{}.txt_attn.norm", "transformer_blocks.{}.attn.norm_added"),
        ("single_blocks.{}.norm", "single_transformer_blocks.{}.attn.norm"),
    )
    for long, short in (("query", "q"), ("key", "k"))
)

_SINGLE_FILE = SingleFile(
    "flux",
    {"double_blocks.0.img_attn.qkv.weight": (), "vector_in.in_layer.weight": (None, 768)},
    {
        "transformer": lambda _: (transformer_layout(_NAMES, *_TENSORS), PLAIN),
        "vae": lambda config: (vae_layout(config), PLAIN),
        "text_encoder": lambda _: (clip_layout("text_encoders.clip_l.transformer."),),
        "text_encoder_2": lambda _: (t5_layout(),),
    },
    derived=_config,
    predictions=("flow",),
)


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
    kohya: ClassVar = _NAMES
    single_file = _SINGLE_FILE

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
