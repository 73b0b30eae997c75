"""What files call the layers of text encoders: CLIP, T5, and language models (see `_names.py`)."""

from __future__ import annotations

from lorimer.families._names import ComponentNames, TokenRows, renamed, unchanged
from lorimer.families._names_unet import WORDS


def clip_names(prefix: str, key: str, *, level: str = "text_model.") -> ComponentNames:
    """Names of CLIP's layers. transformers 5 took the level `text_model.` out of `CLIPTextModel`, files keep
    it; in `CLIPTextModelWithProjection` it is still there, so give it "" as `level`.

    Args:
        prefix: in kohya's files, e.g. "lora_te1_".
        key: "clip_l", "clip_g" or "clip_h".
    """
    inner = "text_model." if not level else ""
    return ComponentNames(
        prefix,
        by_module=True,
        vocabulary=WORDS,
        level=level,
        dotted=(f"text_encoders.{key}.transformer.",),
        tokens=TokenRows(f"{inner}embeddings.token_embedding", key, 49408),
    )


def t5_names(prefix: str, *more_prefixes: str) -> ComponentNames:
    """Names of the layers of a T5 encoder."""
    layer = "encoder.block.{}.layer"
    attention = tuple(f"0.SelfAttention.{each}" for each in "qkvo")
    return ComponentNames(
        prefix,
        unchanged(layer, (*attention, *(f"1.DenseReluDense.{each}" for each in ("wi_0", "wi_1", "wo")))),
        by_module=True,
        more_prefixes=more_prefixes,
        dotted=("text_encoders.t5xxl.transformer.",),
        tokens=TokenRows("shared", "t5", 32128),
    )


def language_names(prefix: str, key: str, dotted: str, *, root: str, count: int) -> ComponentNames:
    """Names of the layers of a language model that reads captions.

    Args:
        key: how bundled embeddings call it, e.g. "gemma".
        dotted: ComfyUI's name of it, e.g. "gemma2_2b".
        root: where its layers lie in the component, e.g. "model.".
        count: rows of its embedding.
    """
    attention = tuple(f"self_attn.{each}_proj" for each in "qkvo")
    feed_forward = tuple(f"mlp.{each}_proj" for each in ("gate", "up", "down"))
    return ComponentNames(
        prefix,
        renamed("layers.{}", f"{root}layers.{{}}", {name: name for name in (*attention, *feed_forward)}),
        dotted=(f"text_encoders.{dotted}.transformer.model.",),
        tokens=TokenRows(f"{root}embed_tokens", key, count),
    )
