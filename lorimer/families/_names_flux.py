"""What files call the layers of FLUX.1, as ComfyUI (flux_to_diffusers) and sd-scripts read them."""

from lorimer.families._names import FileNames, Rule, renamed
from lorimer.families._names_transformers import (
    AROUND,
    FEED_FORWARD,
    embedder,
    flux_blocks,
    flux_single_block,
    transformer_names,
)
from lorimer.families._names_unet import clip_names, t5_names

_MODULATION = {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"}

FLUX = FileNames(
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
