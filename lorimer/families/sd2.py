"""Stable Diffusion 2: as the first, with OpenCLIP's larger text encoder, and models that predict velocity."""

from __future__ import annotations

from typing import ClassVar

from lorimer.families._layouts import (
    PLAIN,
    UNET_INPUT,
    clip_layout,
    open_clip_layout,
    unet_layout,
    vae_layout,
)
from lorimer.families._names import FileNames
from lorimer.families._names_text import clip_names
from lorimer.families._names_unet import unet_names
from lorimer.families._single_file import SingleFile
from lorimer.families.sd1 import StableDiffusion1


class StableDiffusion2(StableDiffusion1):
    """See the module."""

    name = "sd2"
    description = "Stable Diffusion 2.x, at 512 or 768 pixels"
    kohya: ClassVar = FileNames(
        {
            "unet": unet_names(4, (0, 1, 2), native=False),
            "text_encoder": clip_names("lora_te_", "clip_h"),
        },
        architecture="stable-diffusion-v2-512",
        velocity_architecture="stable-diffusion-v2-768-v",
        base_version="sd_v2",
        known_as=("sd_2", "sd2", "stable-diffusion-v2"),
        side=768,
        widths={"attn2.to_k": 1024, "attn2.to_v": 1024, "self_attn.q_proj": 1024},
        header={"ss_v2": "True"},
    )
    single_file = SingleFile(
        "sd2",
        {**UNET_INPUT, "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (None, 1024)},
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
    wide = True
