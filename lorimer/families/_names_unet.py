"""Native names of Stable Diffusion's U-Nets (see `_names.py`).

The native U-Net (Rombach et al. 2021; `openaimodel.py` of its code) is one list of blocks down and one up;
diffusers groups them by level. With `layers` blocks in each level, and one that resamples:

    down_blocks.{level}.resnets.{i}       input_blocks.{1 + (layers + 1) level + i}.0
    down_blocks.{level}.attentions.{i}    input_blocks.{1 + (layers + 1) level + i}.1
    up_blocks.{level}.resnets.{i}         output_blocks.{(layers + 1) level + i}.0
"""

from __future__ import annotations

from collections.abc import Collection

from lorimer.families._names import ComponentNames, Rule, renamed

# The names of modules in diffusers' U-Nets and in CLIP: kohya's files tell both by the same words.
WORDS = """
    add_embedding add_k_proj add_q_proj add_v_proj attentions attn attn1 attn2 class_embedding cond_proj conv
    conv1 conv2 conv_in conv_norm_out conv_out conv_shortcut down_blocks downsamplers embeddings encoder
    encoder_hid_proj fc1 fc2 ff final_layer_norm fuser group_norm k_proj layer_norm1 layer_norm2 layers linear
    linear_1 linear_2 linears mid_block mlp motion_modules net norm norm1 norm2 norm3 out_proj pool
    position_embedding position_net proj proj_in proj_out q_proj resnets self_attn temp_attentions temp_convs
    text_model text_proj text_projection time_emb_proj time_embedding to_add_out to_k to_out to_q to_v
    token_embedding transformer_blocks up_blocks upsamplers v_proj
"""
_TOPS = """
    add_embedding class_embedding conv_in conv_norm_out conv_out down_blocks encoder_hid_proj mid_block
    position_net time_embedding up_blocks
"""
_ATTENTION = (
    "norm",
    "proj_in",
    "proj_out",
    *(f"transformer_blocks.{{}}.norm{number}" for number in (1, 2, 3)),
    *(f"transformer_blocks.{{}}.{attention}.{projection}"
      for attention in ("attn1", "attn2") for projection in ("to_q", "to_k", "to_v", "to_out.0")),
    "transformer_blocks.{}.ff.net.0.proj",
    "transformer_blocks.{}.ff.net.2",
)  # fmt: skip
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_AROUND = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def unet_names(levels: int, attended: Collection[int], *, native: bool, layers: int = 2) -> ComponentNames:
    """Names of a U-Net's layers.

    Args:
        levels: of resolution.
        attended: the levels that have attention, 0 being the finest.
        native: kohya's files have its native names, as SDXL's do; else the modules' paths.
        layers: blocks in each level on the way down.
    """
    rules = [*renamed("", "", _AROUND)]
    for level in range(levels):
        first = 1 + (layers + 1) * level
        for i in range(layers):
            rules += _block(f"input_blocks.{first + i}", f"down_blocks.{level}", i, level in attended)
        rules.append(
            Rule(f"input_blocks.{first + layers}.0.op", (f"down_blocks.{level}.downsamplers.0.conv",))
        )
    rules += renamed("middle_block.0", "mid_block.resnets.0", _RESNET)
    rules += renamed("middle_block.1", "mid_block.attentions.0", {leaf: leaf for leaf in _ATTENTION})
    rules += renamed("middle_block.2", "mid_block.resnets.1", _RESNET)
    for level in range(levels):
        first, has_attention = (layers + 1) * level, levels - 1 - level in attended
        for i in range(layers + 1):
            rules += _block(f"output_blocks.{first + i}", f"up_blocks.{level}", i, has_attention)
        upsampler = f"output_blocks.{first + layers}.{2 if has_attention else 1}.conv"
        rules.append(Rule(upsampler, (f"up_blocks.{level}.upsamplers.0.conv",)))
    return ComponentNames(
        "lora_unet_",
        tuple(rules),
        by_module=not native,
        vocabulary="" if native else WORDS,
        tops="" if native else _TOPS,
        more_prefixes=("lycoris_",),
        dotted=("diffusion_model.",),
    )


def _block(native: str, path: str, i: int, has_attention: bool) -> list[Rule]:
    """A resnet, and the attention behind it where there is one."""
    rules = [*renamed(f"{native}.0", f"{path}.resnets.{i}", _RESNET)]
    if has_attention:
        rules += renamed(f"{native}.1", f"{path}.attentions.{i}", {leaf: leaf for leaf in _ATTENTION})
    return rules
