"""Stable Diffusion 2: as the first, with OpenCLIP's larger text encoder, and models that predict velocity."""

from __future__ import annotations

from typing import ClassVar

from lorimer.families._names import FileNames
from lorimer.families._names_unet import clip_names, unet_names
from lorimer.families._single_files import SD2_FILE
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
    single_file = SD2_FILE
    wide = True
