"""What files call the layers of Qwen-Image: as diffusers does, whose code was the first."""

from lorimer.families._names import FileNames, unchanged
from lorimer.families._names_transformers import ADDED_QKV, QKV, transformer_names, within
from lorimer.families._names_unet import language_names

_BLOCK = (
    *within("attn", (*QKV, *ADDED_QKV, "to_out.0", "to_add_out")),
    *(f"{stream}_{layer}" for stream in ("img", "txt") for layer in ("mod.1", "mlp.net.0.proj", "mlp.net.2")),
)
_AROUND = ("img_in", "txt_in", "norm_out.linear", "proj_out")

QWEN_IMAGE = FileNames(
    {
        "transformer": transformer_names(
            *unchanged("", _AROUND),
            *unchanged("time_text_embed.timestep_embedder", ("linear_1", "linear_2")),
            *unchanged("transformer_blocks.{}", _BLOCK),
        ),
        "text_encoder": language_names(
            "lora_te_", "qwen", "qwen25_7b", root="model.language_model.", count=152064
        ),
    },
    architecture="qwen-image",
    base_version="qwen_image",
    known_as=("qwen",),
)
