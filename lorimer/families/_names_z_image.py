"""What files call the layers of Z-Image, as ComfyUI (comfy/utils.py, z_image_to_diffusers) reads them."""

from lorimer.families._names import FileNames, Inner, Rule, renamed, unchanged
from lorimer.families._names_transformers import QKV, transformer_names, within
from lorimer.families._names_unet import language_names

_BLOCK: Inner = {
    "attention.qkv": within("attention", QKV),
    "attention.out": "attention.to_out.0",
    **{name: name for name in within("feed_forward", ("w1", "w2", "w3"))},
}
_MODULATED: Inner = {**_BLOCK, "adaLN_modulation.0": "adaLN_modulation.0"}


def _blocks(name: str, inner: Inner) -> tuple[Rule, ...]:
    return renamed(f"{name}.{{}}", f"{name}.{{}}", inner)


Z_IMAGE = FileNames(
    {
        "transformer": transformer_names(
            *_blocks("layers", _MODULATED),
            *_blocks("noise_refiner", _MODULATED),
            *_blocks("context_refiner", _BLOCK),
            *renamed("", "", {"x_embedder": "all_x_embedder.2-1"}),
            *renamed(
                "final_layer",
                "all_final_layer.2-1",
                {"linear": "linear", "adaLN_modulation.1": "adaLN_modulation.1"},
            ),
            *unchanged("", ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")),
        ),
        "text_encoder": language_names("lora_te_", "qwen", "qwen3_4b", root="", count=151936),
    },
    architecture="z-image",
    base_version="z_image",
    widths={"attention.to_q": 3840},
)
