"""What files call the layers of FLUX.2, as ComfyUI and diffusers' converters read them."""

from lorimer.families._names import FileNames, Rule, renamed
from lorimer.families._names_transformers import AROUND, embedder, flux_blocks, transformer_names
from lorimer.families._names_unet import language_names

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

FLUX2 = FileNames(
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
