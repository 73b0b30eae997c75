"""Names of layers in kohya's files: module paths with "_" for ".", and back again.

    unet.down_blocks.0.attentions.0.proj_in           lora_unet_down_blocks_0_attentions_0_proj_in
    text_encoder.encoder.layers.0.self_attn.q_proj    lora_te_text_model_encoder_layers_0_self_attn_q_proj

Undoing the underscores needs no model: the module names of diffusers' U-Nets and of CLIP are known words.
"""

from __future__ import annotations

import re
from functools import cache

from lorimer.errors import FileFormatError
from lorimer.formats._components import from_file_path, to_file_path

_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_WORDS = """
    add_embedding add_k_proj add_q_proj add_v_proj attentions attn attn1 attn2 class_embedding cond_proj conv
    conv1 conv2 conv_in conv_norm_out conv_out conv_shortcut down_blocks downsamplers embeddings encoder
    encoder_hid_proj fc1 fc2 ff final_layer_norm fuser group_norm k_proj layer_norm1 layer_norm2 layers linear
    linear_1 linear_2 linears mid_block mlp motion_modules net norm norm1 norm2 norm3 out_proj pool
    position_embedding position_net proj proj_in proj_out q_proj resnets self_attn temp_attentions temp_convs
    text_model text_proj text_projection time_emb_proj time_embedding to_add_out to_k to_out to_q to_v
    token_embedding transformer_blocks up_blocks upsamplers v_proj
"""
# Longer words first, so that "conv_norm_out" is not taken for "conv". A word ends at "_" or the end.
_TOKEN = re.compile(rf"(\d+|{'|'.join(sorted(_WORDS.split(), key=len, reverse=True))})(?:_|$)")
_SDXL = re.compile(r"lora_te[12]_|lora_unet_(input_blocks|middle_block|output_blocks)_")


def kohya_name(component: str, path: str) -> str:
    """The name of the layer at `path` in `component`.

    Raises:
        FileFormatError: kohya's format has no such component, or its underscores could not be undone.
    """
    if component not in _PREFIXES:
        raise FileFormatError(
            f"the kohya format knows no component {component!r}, only {', '.join(_PREFIXES)}; use 'diffusers'"
        )
    name = _PREFIXES[component] + to_file_path(component, path).replace(".", "_")
    if module_path(name) != f"{component}.{path}":
        raise FileFormatError(
            f"the kohya format cannot hold {component + '.' + path!r}: it writes '_' for '.', which "
            "could not be undone for this name. Use format 'diffusers' or 'lorimer'"
        )
    return name


@cache
def module_path(name: str) -> str | None:
    """The module path of a kohya name, component first; None where a word in it is unknown."""
    component = next((each for each, prefix in _PREFIXES.items() if name.startswith(prefix)), None)
    if component is None:
        return None
    rest = name.removeprefix(_PREFIXES[component])
    words, place = [], 0
    while place < len(rest):
        token = _TOKEN.match(rest, place)
        if token is None:
            return None
        words.append(token.group(1))
        place = token.end()
    return from_file_path(component, ".".join(words)) if words and not rest.endswith("_") else None


def is_sdxl(name: str) -> bool:
    """Whether a name is one of Stable Diffusion XL's, or of the original block names that it uses."""
    return _SDXL.match(name) is not None
