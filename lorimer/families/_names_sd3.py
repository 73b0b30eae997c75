"""What files call the layers of Stable Diffusion 3, as ComfyUI (comfy/utils.py, mmdit_to_diffusers) and
sd-scripts read them."""

from lorimer.families._names import FileNames, Inner, Rule, renamed
from lorimer.families._names_transformers import ADDED_QKV, QKV, transformer_names, within
from lorimer.families._names_unet import clip_names, t5_names

_BLOCK: Inner = {
    "x_block.attn.qkv": within("attn", QKV),
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.qkv": within("attn2", QKV),
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.attn.qkv": within("attn", ADDED_QKV),
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
_AROUND = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}

SD3 = FileNames(
    {
        "transformer": transformer_names(
            *renamed("", "", _AROUND),
            *renamed("joint_blocks.{}", "transformer_blocks.{}", _BLOCK),
            # Of these the last block's holds two matrices, the others' six, which stand as they are.
            Rule(
                "joint_blocks.{}.context_block.adaLN_modulation.1",
                ("transformer_blocks.{}.norm1_context.linear",),
                halves_swapped=True,
            ),
            Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), halves_swapped=True),
        ),
        "text_encoder": clip_names("lora_te1_", "clip_l", level=""),
        "text_encoder_2": clip_names("lora_te2_", "clip_g", level=""),
        "text_encoder_3": t5_names("lora_te3_"),
    },
    architecture="stable-diffusion-v3-medium",
    base_version="sd3",
    known_as=("stable-diffusion-3", "medium", "5-"),
)
