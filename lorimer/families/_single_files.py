"""Single-file checkpoints of Stable Diffusion and FLUX (see `_single_file.py`)."""

from __future__ import annotations

from lorimer.families._layout import Shapes
from lorimer.families._layouts import (
    PLAIN,
    clip_layout,
    open_clip_layout,
    t5_layout,
    transformer_layout,
    unet_layout,
    vae_layout,
)
from lorimer.families._names import Rule
from lorimer.families._names_flux import FLUX
from lorimer.families._names_sd3 import SD3
from lorimer.families._single_file import Config, SingleFile, blocks_in

_CROSS_1 = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_CROSS_4 = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_FIRST = "input_blocks.0.0.weight"
_PLAIN_LATENTS = (None, 4)  # inpainting models read nine channels

SD1_FILE = SingleFile(
    "sd1",
    {_FIRST: _PLAIN_LATENTS, _CROSS_1: (None, 768)},
    {
        "unet": lambda config: (unet_layout(config), PLAIN),
        "vae": lambda config: (vae_layout(config), PLAIN),
        "text_encoder": lambda _: (clip_layout("cond_stage_model.transformer."),),
    },
)

SD2_FILE = SingleFile(
    "sd2",
    {_FIRST: _PLAIN_LATENTS, _CROSS_1: (None, 1024)},
    {
        "unet": lambda config: (unet_layout(config), PLAIN),
        "vae": lambda config: (vae_layout(config), PLAIN),
        "text_encoder": lambda _: (
            open_clip_layout("cond_stage_model.model.", level=""),
            clip_layout("cond_stage_model.transformer."),
        ),
    },
    predictions=("v_prediction", "epsilon"),
    left_out=r"cond_stage_model\.model\.transformer\.resblocks\.23\..*",  # its last layer is never asked
)

SDXL_FILE = SingleFile(
    "sdxl",
    {_FIRST: _PLAIN_LATENTS, _CROSS_4: (None, 2048), "label_emb.0.0.weight": (None, 2816)},
    {
        "unet": lambda config: (unet_layout(config), PLAIN),
        "vae": lambda config: (vae_layout(config), PLAIN),
        "text_encoder": lambda _: (clip_layout("conditioner.embedders.0.transformer."),),
        "text_encoder_2": lambda _: (
            open_clip_layout("conditioner.embedders.1.model.", level="text_model."),
            clip_layout("conditioner.embedders.1.transformer."),
        ),
    },
)


def _sd3_config(shapes: Shapes) -> Config:
    """Stable Diffusion 3 and 3.5 medium and large differ in depth, and in what normalises their attention."""
    depth = blocks_in(shapes, "joint_blocks")
    dual = [i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes]
    normed = "joint_blocks.0.x_block.attn.ln_q.weight" in shapes
    return {
        "num_layers": depth,
        "num_attention_heads": depth,
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "dual_attention_layers": dual,
        "qk_norm": "rms_norm" if normed else None,
        "pos_embed_max_size": round(shapes["pos_embed"][1] ** 0.5),
    }


_SD3_TENSORS = (
    Rule("pos_embed", ("pos_embed.pos_embed",)),
    *(
        Rule(f"joint_blocks.{{}}.{block}.{attention}.ln_{each}.weight",
             (f"transformer_blocks.{{}}.{attention}.norm_{added}{each}.weight",))
        for block, attention, added in (
            ("x_block", "attn", ""), ("x_block", "attn2", ""), ("context_block", "attn", "added_"))
        for each in "qk"
    ),
)  # fmt: skip

SD3_FILE = SingleFile(
    "sd3",
    {"joint_blocks.0.context_block.attn.qkv.weight": (), "pos_embed": (1,)},
    {
        "transformer": lambda _: (transformer_layout(SD3, *_SD3_TENSORS), PLAIN),
        "vae": lambda config: (vae_layout(config), PLAIN),
        "text_encoder": lambda _: (clip_layout("text_encoders.clip_l.transformer."),),
        "text_encoder_2": lambda _: (clip_layout("text_encoders.clip_g.transformer."),),
        "text_encoder_3": lambda _: (t5_layout(),),
    },
    derived=_sd3_config,
    predictions=("flow",),
)


def _flux_config(shapes: Shapes) -> Config:
    """FLUX.1 dev was distilled with guidance as an input, schnell without."""
    return {
        "num_layers": blocks_in(shapes, "double_blocks"),
        "num_single_layers": blocks_in(shapes, "single_blocks"),
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


_FLUX_TENSORS = tuple(
    Rule(f"{native}.{long}_norm.scale", (f"{path}_{short}.weight",))
    for native, path in (
        ("double_blocks.{}.img_attn.norm", "transformer_blocks.{}.attn.norm"),
        ("double_blocks.{}.txt_attn.norm", "transformer_blocks.{}.attn.norm_added"),
        ("single_blocks.{}.norm", "single_transformer_blocks.{}.attn.norm"),
    )
    for long, short in (("query", "q"), ("key", "k"))
)

FLUX_FILE = SingleFile(
    "flux",
    {"double_blocks.0.img_attn.qkv.weight": (), "vector_in.in_layer.weight": (None, 768)},
    {
        "transformer": lambda _: (transformer_layout(FLUX, *_FLUX_TENSORS), PLAIN),
        "vae": lambda config: (vae_layout(config), PLAIN),
        "text_encoder": lambda _: (clip_layout("text_encoders.clip_l.transformer."),),
        "text_encoder_2": lambda _: (t5_layout(),),
    },
    derived=_flux_config,
    predictions=("flow",),
)
