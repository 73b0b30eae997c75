"""The keys that we write for whole models, against names and shapes derived a second time.

The models are built on the meta device from their real configs, so nothing is allocated. Every Linear and
convolution has LoRA of rank 4; what a file would hold must be, key by key and shape by shape, what fits the
layers of the original code (`independent_names.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lorimer import AdapterState, registry
from lorimer.adapters._state import LayerState
from lorimer.formats._families import family_to_write
from lorimer.formats.kohya import keyed_layers
from tests.unit.formats.independent_names import Shape, clip, comfy_unet, flux, ldm_unet, mmdit

RANK = 4


def state_of(parts: dict[str, nn.Module]) -> AdapterState:
    """LoRA on every Linear and convolution, without memory."""
    layers = {}
    for component, part in parts.items():
        for path, module in part.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                out, *into = module.weight.shape
                A = torch.empty(RANK, *into, device="meta")
                B = torch.empty(out, RANK, *[1] * (len(into) - 1), device="meta")
                layers[f"{component}.{path}"] = LayerState({"A": A, "B": B}, RANK, 2.0)
    return AdapterState("lora", layers, components=tuple(parts))


def written(parts: dict[str, nn.Module], family: str) -> dict[str, Shape]:
    """Key -> shape of everything in the file; the family is found without being told."""
    state = state_of(parts)
    assert family_to_write(state, "kohya").name == family
    tensors, _ = keyed_layers(state, registry.get("family", family).kohya)
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def fitting(
    prefix: str, layers: Iterable[tuple[str, Shape]], parts: dict[str, int] | None = None
) -> dict[str, Shape]:
    """The keys and shapes of LoRA on the layers. `parts`: end of a path -> how many are one there."""
    expected: dict[str, Shape] = {}
    for path, (out, *into) in layers:
        rank = RANK * next((count for end, count in (parts or {}).items() if path.endswith(end)), 1)
        name = prefix + path.replace(".", "_")
        expected[f"{name}.lora_down.weight"] = (rank, *into)
        expected[f"{name}.lora_up.weight"] = (out, rank, *[1] * (len(into) - 1))
        expected[f"{name}.alpha"] = ()
    return expected


def clip_tower(layers: int, width: int, heads: int, projected: bool = False) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


SD1: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def test_stable_diffusion_1() -> None:
    """Files have diffusers' names; by ComfyUI's arithmetic they reach every layer of the original U-Net."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        parts = {"unet": UNet2DConditionModel(**SD1), "text_encoder": clip_tower(12, 768, 12)}
    keys = written(parts, "sd1")
    original = list(
        ldm_unet(
            channels=320, multipliers=(1, 2, 4, 4), depths=(1, 1, 1, 0), context=768, linear=False, vector=0
        )
    )
    assert len(original) == 282
    expected = fitting("lora_te_", clip(12, 768))
    assert {key: shape for key, shape in keys.items() if key.startswith("lora_te")} == expected
    reached = {}
    for key in keys.keys() - expected.keys():
        name, _, suffix = key.removeprefix("lora_unet_").partition(".")
        reached[f"{comfy_unet(name, 4, (0, 1, 2))}.{suffix}"] = keys[key]
    assert reached == fitting("", original)


def test_stable_diffusion_xl() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**SDXL),
            "text_encoder": clip_tower(12, 768, 12),
            "text_encoder_2": clip_tower(32, 1280, 20, projected=True),
        }
    original = list(
        ldm_unet(
            channels=320, multipliers=(1, 2, 4), depths=(0, 2, 10), context=2048, linear=True, vector=2816
        )
    )
    assert len(original) == 794
    assert written(parts, "sdxl") == {
        **fitting("lora_unet_", original),
        **fitting("lora_te1_", clip(12, 768)),
        **fitting("lora_te2_", clip(32, 1280)),
        **fitting("lora_te2_", [("text_projection", (1280, 1280))]),
    }


def test_flux() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        parts = {
            "transformer": FluxTransformer2DModel(guidance_embeds=True),
            "text_encoder": clip_tower(12, 768, 12),
        }
    assert written(parts, "flux") == {
        **fitting("lora_unet_", flux(), {".qkv": 3, ".linear1": 4}),
        **fitting("lora_te1_", clip(12, 768)),
    }


def test_stable_diffusion_3() -> None:
    from diffusers import SD3Transformer2DModel

    size: dict[str, Any] = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
    twofold = tuple(range(13))  # as 3.5 medium
    with torch.device("meta"):
        plain = {
            "transformer": SD3Transformer2DModel(**size),
            "text_encoder": clip_tower(12, 768, 12, projected=True),
            "text_encoder_2": clip_tower(32, 1280, 20, projected=True),
        }
        later = {"transformer": SD3Transformer2DModel(**size, dual_attention_layers=twofold)}
    fused = {".qkv": 3}
    assert written(plain, "sd3") == {
        **fitting("lora_unet_", mmdit(), fused),
        **fitting("lora_te1_", [*clip(12, 768), ("text_projection", (768, 768))]),
        **fitting("lora_te2_", [*clip(32, 1280), ("text_projection", (1280, 1280))]),
    }
    assert written(later, "sd3") == fitting("lora_unet_", mmdit(twofold=twofold), fused)


def test_rows_stand_as_in_the_original_code() -> None:
    """FLUX keeps shift and scale of its last layer in the other order than diffusers, and q, k, v and the
    feed-forward below each other."""
    names = registry.get("family", "flux").kohya
    block, width = "transformer.single_transformer_blocks.3", 5
    out = {
        f"{block}.attn.to_q": 1.0,
        f"{block}.attn.to_k": 2.0,
        f"{block}.attn.to_v": 3.0,
        f"{block}.proj_mlp": 4.0,
    }
    layers = {}
    for path, value in out.items():
        rows = width * (4 if path.endswith("mlp") else 1)
        layers[path] = LayerState({"A": torch.ones(1, width), "B": torch.full((rows, 1), value)}, 1, 1.0)
    halves = torch.cat([torch.full((width, 1), 7.0), torch.full((width, 1), 8.0)])
    layers["transformer.norm_out.linear"] = LayerState({"A": torch.ones(1, width), "B": halves}, 1, 1.0)
    tensors, _ = keyed_layers(AdapterState("lora", layers, components=("transformer",)), names)

    def update(name: str) -> Tensor:
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        return (up @ down * tensors[f"{name}.alpha"] / len(down))[:, 0]

    assert update("lora_unet_single_blocks_3_linear1").tolist() == [
        1.0 * value for value in (1, 2, 3, 4, 4, 4, 4) for _ in range(width)
    ]
    assert update("lora_unet_final_layer_adaLN_modulation_1").tolist() == [8.0] * width + [7.0] * width
