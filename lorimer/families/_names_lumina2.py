"""What files call the layers of Lumina-Image 2.0, as sd-scripts and ComfyUI read them."""

from lorimer.families._names import FileNames, Rule, renamed
from lorimer.families._names_transformers import QKV, transformer_names, within
from lorimer.families._names_unet import language_names

_BLOCK = {
    "attention.out": "attn.to_out.0",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
}
_MODULATED = {**_BLOCK, "adaLN_modulation.1": "norm1.linear"}
_AROUND = {
    "x_embedder": "x_embedder",
    "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
    "cap_embedder.1": "time_caption_embed.caption_embedder.1",
    "final_layer.adaLN_modulation.1": "norm_out.linear_1",
    "final_layer.linear": "norm_out.linear_2",
}


def _blocks(name: str, inner: dict[str, str]) -> tuple[Rule, ...]:
    """Three heads of queries share one of keys and one of values."""
    path = f"{name}.{{}}"
    attention = Rule(f"{path}.attention.qkv", within(f"{path}.attn", QKV), (3, 1, 1))
    return (attention, *renamed(path, path, dict(inner)))


LUMINA2 = FileNames(
    {
        "transformer": transformer_names(
            *_blocks("layers", _MODULATED),
            *_blocks("noise_refiner", _MODULATED),
            *_blocks("context_refiner", _BLOCK),
            *renamed("", "", _AROUND),
        ),
        "text_encoder": language_names("lora_te_", "gemma", "gemma2_2b", root="", count=256000),
    },
    architecture="lumina-2",
    base_version="lumina2",
    known_as=("lumina",),
    widths={"attn.to_q": 2304},
)
