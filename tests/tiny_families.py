"""A model of every family, of its true architecture, so small that a test makes one in a blink.

All read 8 pixels a side as one latent of the VAE, and tokens are single letters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lorimer import registry
from lorimer.tasks._diffusers_folder import quiet
from tests.tiny_models import tiny_pipeline, tiny_tokenizer

Parts = dict[str, Any]
WIDTH = 16  # of most text encoders
LATENTS = 4  # channels of the VAEs


def save_tiny_family(name: str, folder: Path) -> Path:
    """A random model of the family `name` in diffusers' layout in `folder`; returns the folder."""
    import diffusers

    torch.manual_seed(0)
    family = registry.get("family", name)
    with quiet():
        parts = CASES[name]()
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            _enliven(part.eval())
    with quiet():
        getattr(diffusers, family.pipeline)(**parts, **family.pipeline_options).save_pretrained(folder)
    return folder


def _enliven(network: torch.nn.Module) -> None:
    """Give values to parameters that are left without or start at zero, so that each makes a difference."""
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.endswith("pad_token") or not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.05)


# ---- the families


def sd1() -> Parts:
    pipeline = tiny_pipeline()
    return {name: getattr(pipeline, name) for name in registry.get("family", "sd1").parts}


def sd2() -> Parts:
    return {
        "unet": _unet(cross_attention_dim=1024, use_linear_projection=True),
        "text_encoder": _clip(1024, layers=1),
        "vae": _vae(),
        "tokenizer": tiny_tokenizer(),
        "scheduler": _diffusion_sampler("v_prediction"),
    }


def sdxl() -> Parts:
    unet = _unet(
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return {
        "unet": unet,
        "text_encoder": _clip(),
        "text_encoder_2": _clip(projected=True),
        "vae": _vae(),
        "tokenizer": tiny_tokenizer(),
        "tokenizer_2": tiny_tokenizer(),
        "scheduler": _diffusion_sampler("epsilon"),
    }


def sd3() -> Parts:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return {
        "transformer": transformer,
        "text_encoder": _clip(projected=True),
        "text_encoder_2": _clip(projected=True),
        "text_encoder_3": _t5(2 * WIDTH),
        "vae": _vae(**_SHIFTED),
        "tokenizer": tiny_tokenizer(),
        "tokenizer_2": tiny_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
        "scheduler": _flow_sampler(shift=3.0),
    }


def flux() -> Parts:
    from diffusers import FluxTransformer2DModel

    return {
        "transformer": FluxTransformer2DModel(
            **_FLUX_SHAPE, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True
        ),
        "text_encoder": _clip(),
        "text_encoder_2": _t5(WIDTH),
        "vae": _vae(**_SHIFTED),
        "tokenizer": tiny_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
        "scheduler": _flow_sampler(**_DYNAMIC),
    }


def chroma() -> Parts:
    from diffusers import ChromaTransformer2DModel

    return {
        "transformer": ChromaTransformer2DModel(
            **_FLUX_SHAPE,
            joint_attention_dim=WIDTH,
            approximator_num_channels=64,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        "text_encoder": _t5(WIDTH),
        "vae": _vae(**_SHIFTED),
        "tokenizer": t5_tokenizer(),
        "scheduler": _flow_sampler(**_DYNAMIC),
    }


def flux2_klein() -> Parts:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3ForCausalLM

    vae = AutoencoderKLFlux2(**_VAE_SHAPE)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return {
        "transformer": Flux2Transformer2DModel(
            **_FLUX_SHAPE | {"axes_dims_rope": (4, 4, 4, 4)},
            joint_attention_dim=3 * 8,
            timestep_guidance_channels=32,
            guidance_embeds=False,
        ),
        "text_encoder": _qwen3(Qwen3ForCausalLM, width=8, layers=28),  # of which it reads 9, 18, 27
        "vae": vae,
        "tokenizer": qwen_tokenizer(),
        "scheduler": _flow_sampler(**_DYNAMIC),
    }


def qwen_image() -> Parts:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    return {
        "transformer": QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=4 * LATENTS,
            out_channels=LATENTS,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
        "text_encoder": _qwen_vl(),
        "vae": AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=LATENTS,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[-0.5, 0.25, 0.0, 1.0],
            latents_std=[2.0, 0.5, 1.5, 1.0],
        ),
        "tokenizer": qwen_tokenizer(),
        "scheduler": _flow_sampler(
            **_DYNAMIC | {"max_shift": 0.9, "max_image_seq_len": 8192}, shift_terminal=0.02
        ),
    }


def z_image() -> Parts:
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Model

    return {
        "transformer": ZImageTransformer2DModel(
            in_channels=LATENTS,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 4, 8],
        ),
        "text_encoder": _qwen3(Qwen3Model, WIDTH, layers=2),
        "vae": _vae(**_SHIFTED),
        "tokenizer": qwen_tokenizer(),
        "scheduler": _flow_sampler(shift=3.0),
    }


def lumina2() -> Parts:
    from diffusers import Lumina2Transformer2DModel

    return {
        "transformer": Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=LATENTS,
            hidden_size=48,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=3,  # three of queries to one of keys and values, as in the large model
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 4, 8),
            cap_feat_dim=WIDTH,
        ),
        "text_encoder": _gemma(),
        "vae": _vae(**_SHIFTED),
        "tokenizer": gemma_tokenizer(),
        "scheduler": _flow_sampler(shift=6.0),
    }


CASES: dict[str, Callable[[], Parts]] = {
    make.__name__.replace("_", "-"): make
    for make in (sd1, sd2, sdxl, sd3, flux, chroma, flux2_klein, qwen_image, z_image, lumina2)
}

# ---- networks

_FLUX_SHAPE = {
    "in_channels": 4 * LATENTS,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 4, 8),
}
_VAE_SHAPE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8,) * 4,
    "layers_per_block": 1,
    "latent_channels": LATENTS,
    "norm_num_groups": 4,
    "sample_size": 64,
}
_SHIFTED = {"shift_factor": 0.25, "use_quant_conv": False, "use_post_quant_conv": False}
_DYNAMIC: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    shape = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**shape | more)


def _vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**_VAE_SHAPE | {"scaling_factor": 0.5} | more)


def _clip(width: int = WIDTH, layers: int = 2, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def _language_shape(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
    }


def _qwen3(cls: Any, width: int, layers: int) -> Any:
    from transformers import Qwen3Config

    shape = _language_shape(width, layers) | {"head_dim": 8, "tie_word_embeddings": True}
    return cls(Qwen3Config(vocab_size=len(qwen_tokenizer()), **shape))


def _qwen_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = _language_shape(WIDTH, 2) | {
        "vocab_size": len(qwen_tokenizer()),
        "bos_token_id": None,
        "eos_token_id": qwen_tokenizer().eos_token_id,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def _gemma() -> Any:
    from transformers import Gemma2Config, Gemma2Model

    shape = _language_shape(WIDTH, 3) | {"head_dim": 8, "query_pre_attn_scalar": 8}
    return Gemma2Model(Gemma2Config(vocab_size=len(gemma_tokenizer()), **shape))


def _diffusion_sampler(prediction: str) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _flow_sampler(**more: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**more)


# ---- tokenizers

_LETTERS = "".join(map(chr, range(32, 127)))
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def t5_tokenizer() -> Any:
    """Every letter is a token; pads with 0, ends with 1."""
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = special + [(letter, -3.0) for letter in _LETTERS[1:]]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def qwen_tokenizer() -> Any:
    """Every byte is a token; a chat template of the usual kind."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {letter: number for number, letter in enumerate(bytes_to_unicode().values())}
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocabulary[special] = len(vocabulary)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=2048,
    )
    tokenizer.chat_template = _CHAT
    return tokenizer


def gemma_tokenizer() -> Any:
    """Every letter is a token, begins with <bos>."""
    from tokenizers import processors
    from transformers import GemmaTokenizer

    vocabulary = {special: number for number, special in enumerate(("<pad>", "<eos>", "<bos>", "<unk>"))}
    for letter in ("▁", *_LETTERS[1:]):
        vocabulary[letter] = len(vocabulary)
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=2048)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return tokenizer
