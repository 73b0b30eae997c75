"""Language models as llama.cpp names them, and in what order it keeps the rows of their projections."""

from __future__ import annotations

import re

from torch import Tensor

# transformers' model_type -> llama.cpp's architecture.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "granite": "granite",
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "starcoder2": "starcoder2",
    "olmo2": "olmo2",
}

# Architectures whose rotary embedding turns neighbouring rows; transformers turns the two halves of a head.
PERMUTED = frozenset({"llama", "granite", "smollm3"})

_IN_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_FUSED = {
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "starcoder2": {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
}
_BACK = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def to_gguf(path: str) -> str | None:
    """llama.cpp's name of a layer of transformers; None where it has none."""
    if path == "lm_head":
        return "output"
    found = re.fullmatch(r"model\.layers\.(0|[1-9]\d{0,5})\.([\w.]+)", path)
    if found is None or found[2] not in _IN_BLOCK:
        return None
    return f"blk.{found[1]}.{_IN_BLOCK[found[2]]}"


def from_gguf(name: str, architecture: str) -> str | None:
    """The inverse of `to_gguf`."""
    if name == "output":
        return "lm_head"
    found = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(\w+)", name)
    if found is None:
        return None
    layers = {ours: theirs for theirs, ours in reversed(_IN_BLOCK.items())} | _BACK
    layer = _FUSED.get(architecture, {}).get(found[2]) or layers.get(found[2])
    return None if layer is None else f"model.layers.{found[1]}.{layer}"


def in_their_order(rows: Tensor, heads: int) -> Tensor:
    """(out, rank) Rows of a query or key projection's B as a permuted architecture keeps them: within each
    head row i of the first half is followed by row i of the second."""
    out, rank = rows.shape
    return rows.reshape(heads, 2, out // heads // 2, rank).swapaxes(1, 2).reshape(out, rank).contiguous()


def in_our_order(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `in_their_order`."""
    out, rank = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, rank).swapaxes(1, 2).reshape(out, rank).contiguous()
