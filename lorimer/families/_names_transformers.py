"""What the native names of FLUX-like transformers have in common (see `_names.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from lorimer.families._names import ComponentNames, Inner, Rule, renamed

AROUND = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
QKV = ("to_q", "to_k", "to_v")
ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")
FEED_FORWARD = {
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}


def transformer_names(*rules: Rule) -> ComponentNames:
    """Names of a diffusion transformer's layers. OneTrainer and SimpleTuner keep the modules' paths."""
    return ComponentNames(
        "lora_unet_",
        rules,
        more_prefixes=("lora_transformer_", "lycoris_"),
        dotted=("diffusion_model.",),
    )


def within(path: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Each of the names within `path`."""
    return tuple(f"{path}.{name}" for name in names)


def embedder(native: str, path: str) -> tuple[Rule, ...]:
    """An embedding of a number or a vector: two layers."""
    return renamed(native, path, {"in_layer": "linear_1", "out_layer": "linear_2"})


def flux_blocks(others: Mapping[str, str]) -> tuple[Rule, ...]:
    """The double blocks of FLUX and its kin: attention, and the `others`."""
    inner: Inner = {
        "img_attn.qkv": within("attn", QKV),
        "img_attn.proj": "attn.to_out.0",
        "txt_attn.qkv": within("attn", ADDED_QKV),
        "txt_attn.proj": "attn.to_add_out",
        **others,
    }
    return renamed("double_blocks.{}", "transformer_blocks.{}", inner)


def flux_single_block() -> Rule:
    """The layer of FLUX's single blocks that holds queries, keys, values and the first half of the
    feed-forward, which is four times as wide."""
    block = "single_transformer_blocks.{}"
    modules = (*within(f"{block}.attn", QKV), f"{block}.proj_mlp")
    return Rule("single_blocks.{}.linear1", modules, (1, 1, 1, 4))
