"""The layouts of the components that families share (see `_layout.py`).

Names of the autoencoder are those of `taming`'s and latent-diffusion's code (Esser et al. 2020; Rombach et
al. 2021), of the text encoders those of OpenCLIP and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorimer.families._layout import Layout
from lorimer.families._names import FileNames, Rule, renamed
from lorimer.families._names_unet import unet_names

Config = Mapping[str, Any]
DENOISER = ("model.diffusion_model.", "diffusion_model.", "")
UNET_INPUT = {"input_blocks.0.0.weight": (None, 4)}  # a U-Net's; inpainting models read nine channels

PLAIN = Layout(("",))  # a component's own file, in the names of diffusers or transformers


def unet_layout(config: Config) -> Layout:
    """Of the U-Net that has this config."""
    blocks = config["down_block_types"]
    attended = [level for level, kind in enumerate(blocks) if "Attn" in kind]
    names = unet_names(len(blocks), attended, native=True, layers=config["layers_per_block"])
    return Layout(DENOISER, names.rules)


def transformer_layout(names: FileNames, *tensors: Rule) -> Layout:
    """Of a transformer whose layers have these names; `tensors` are its others."""
    return Layout(DENOISER, names.components["transformer"].rules, tensors)


def vae_layout(config: Config) -> Layout:
    """Of the autoencoder that has this config."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    resnet = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
    attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    around = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
    rules = [Rule(name, (name,)) for name in ("quant_conv", "post_quant_conv")]
    for half in ("encoder", "decoder"):
        rules += renamed(half, half, around)
        rules += renamed(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", resnet)
        rules += renamed(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", attention)
        rules += renamed(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", resnet)
    for level in range(levels):
        down, up = (f"encoder.down.{level}", f"encoder.down_blocks.{level}"), (
            f"decoder.up.{levels - 1 - level}",  # native code counts from the coarsest
            f"decoder.up_blocks.{level}",
        )  # fmt: skip
        for (native, path), count in ((down, layers), (up, layers + 1)):
            for i in range(count):
                rules += renamed(f"{native}.block.{i}", f"{path}.resnets.{i}", resnet)
        rules.append(Rule(f"{down[0]}.downsample.conv", (f"{down[1]}.downsamplers.0.conv",)))
        rules.append(Rule(f"{up[0]}.upsample.conv", (f"{up[1]}.upsamplers.0.conv",)))
    convolutions = tuple(f".attn_1.{each}.weight" for each in ("q", "k", "v", "proj_out"))
    return Layout(("first_stage_model.", "vae.", ""), tuple(rules), convolutions=convolutions)


def clip_layout(*prefixes: str) -> Layout:
    """Of a CLIP text encoder in the names of transformers, of which newer versions have lost a level."""
    return Layout((*prefixes, ""), level="text_model.")


def open_clip_layout(prefix: str, *, level: str) -> Layout:
    """Of a CLIP text encoder in the names of OpenCLIP.

    Args:
        level: "text_model." where our class has that level, else "".
    """
    block, native = f"{level}encoder.layers.{{}}", "transformer.resblocks.{}"
    inner = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    rules = [*renamed(native, block, inner), Rule("ln_final", (f"{level}final_layer_norm",))]
    rules.append(Rule("token_embedding", (f"{level}embeddings.token_embedding",)))
    tensors = [
        Rule("positional_embedding", (f"{level}embeddings.position_embedding.weight",)),
        Rule("text_projection", ("text_projection.weight",)),
    ]
    for leaf in ("weight", "bias"):
        joined = tuple(f"{block}.self_attn.{each}_proj.{leaf}" for each in "qkv")
        tensors.append(Rule(f"{native}.attn.in_proj_{leaf}", joined, (1, 1, 1)))
    return Layout((prefix, ""), tuple(rules), tuple(tensors), transposed=frozenset({"text_projection"}))


def t5_layout() -> Layout:
    """Of a T5 encoder."""
    return Layout(("text_encoders.t5xxl.transformer.", ""))
