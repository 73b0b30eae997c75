"""Stable Diffusion 3 and 3.5: a transformer over picture and text tokens, two CLIP text encoders and T5
(Esser et al. 2024, arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lorimer.families._base import (
    CLIP_PROJECTED,
    CLIP_TOKENIZER,
    KL_VAE,
    SCHEDULER,
    T5,
    T5_TOKENIZER,
    Conditioning,
    Family,
    Part,
    TimeSampling,
)
from lorimer.families._layout import Shapes
from lorimer.families._layouts import PLAIN, clip_layout, t5_layout, transformer_layout, vae_layout
from lorimer.families._names import FileNames, Inner, Rule, renamed
from lorimer.families._names_text import clip_names, t5_names
from lorimer.families._names_transformers import ADDED_QKV, QKV, transformer_names, within
from lorimer.families._single_file import SingleFile, blocks_in

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel

# What files call its layers, as ComfyUI (comfy/utils.py, mmdit_to_diffusers) and sd-scripts read them.
_BLOCK: Inner = {
    "x_block.attn.qkv": within("attn", QKV),
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.qkv": within("attn2", QKV),
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.attn.qkv": within("attn", ADDED_QKV),
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
_AROUND = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}

_NAMES = FileNames(
    {
        "transformer": transformer_names(
            *renamed("", "", _AROUND),
            *renamed("joint_blocks.{}", "transformer_blocks.{}", _BLOCK),
            # Of these the last block's holds two matrices, the others' six, which stand as they are.
            Rule(
                "joint_blocks.{}.context_block.adaLN_modulation.1",
                ("transformer_blocks.{}.norm1_context.linear",),
                halves_swapped=True,
            ),
            Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), halves_swapped=True),
        ),
        "text_encoder": clip_names("lora_te1_", "clip_l", level=""),
        "text_encoder_2": clip_names("lora_te2_", "clip_g", level=""),
        "text_encoder_3": t5_names("lora_te3_"),
    },
    architecture="stable-diffusion-v3-medium",
    base_version="sd3",
    known_as=("stable-diffusion-3", "medium", "5-"),
)


# How a single checkpoint file of it is laid out.
def _config(shapes: Shapes) -> dict[str, Any]:
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


_TENSORS = (
    Rule("pos_embed", ("pos_embed.pos_embed",)),
    *(
        Rule(f"joint_blocks.{{}}.{block}.{attention}.ln_{each}.weight",
             (f"transformer_blocks.{{}}.{attention}.norm_{added}{each}.weight",))
        for block, attention, added in (
            ("x_block", "attn", ""), ("x_block", "attn2", ""), ("context_block", "attn", "added_"))
        for each in "qk"
    ),
)  # fmt: skip

_SINGLE_FILE = SingleFile(
    "sd3",
    {"joint_blocks.0.context_block.attn.qkv.weight": (), "pos_embed": (1,)},
    {
        "transformer": lambda _: (transformer_layout(_NAMES, *_TENSORS), PLAIN),
        "vae": lambda config: (vae_layout(config), PLAIN),
        "text_encoder": lambda _: (clip_layout("text_encoders.clip_l.transformer."),),
        "text_encoder_2": lambda _: (clip_layout("text_encoders.clip_g.transformer."),),
        "text_encoder_3": lambda _: (t5_layout(),),
    },
    derived=_config,
    predictions=("flow",),
)


class StableDiffusion3(Family):
    """See the module. Without T5 its tokens are zeros, which the model has met in training."""

    name = "sd3"
    description = "Stable Diffusion 3 and 3.5, with or without T5"
    pipeline = "StableDiffusion3Pipeline"
    parts: ClassVar = {
        "transformer": Part("diffusers", "SD3Transformer2DModel"),
        "text_encoder": CLIP_PROJECTED,
        "text_encoder_2": CLIP_PROJECTED,
        "text_encoder_3": replace(T5, optional=True),
        "vae": KL_VAE,
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_TOKENIZER,
        "tokenizer_3": replace(T5_TOKENIZER, optional=True),
        "scheduler": SCHEDULER,
    }
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    # "rf/lognorm(0.00, 1.00)", the best of the paper's table 1, with the shift that its sampler has.
    times: ClassVar = TimeSampling("logit-normal", shift="auto")
    guidance = 7.0
    kohya: ClassVar = _NAMES
    single_file = _SINGLE_FILE

    @classmethod
    def idle(cls, model: DiffusionModel) -> tuple[str, ...]:
        """The last block makes nothing of the text any more."""
        attention = f"transformer.transformer_blocks.{model.transformer.config.num_layers - 1}.attn"
        norm = (f"{attention}.norm_added_q",) if model.transformer.config.qk_norm else ()
        return (f"{attention}.add_q_proj", *norm)

    @staticmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        hidden, _, pooled, _ = pipeline.encode_prompt(
            list(captions),
            None,
            None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip,
        )
        return {"hidden": hidden, "pooled": pooled}

    @staticmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        return model.transformer(
            noisy,
            timestep=times * 1000,
            encoder_hidden_states=conditioning["hidden"],
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )[0]

    @classmethod
    def resolution(cls, model: DiffusionModel) -> int:
        return int(model.transformer.config.sample_size) * cls.pixels_per_latent(model)
