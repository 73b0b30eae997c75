"""kohya's files against a second reading of how its programs name layers and apply them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import registry
from lorimer.errors import FileFormatError
from lorimer.formats import safe_io
from tests.tolerances import SAME_NETWORK_OUTPUT, relative_difference
from tests.unit.formats.conftest import MIXED_ALPHAS, MIXED_RANKS, Parts, adapt, outputs

NAMES = registry.get("family", "sd1").kohya


def names_of(pipeline: Any) -> dict[str, nn.Module]:
    """Kohya name -> layer, made from the model as kohya's trainer does: "_" for "." in the modules' names,
    with the level that CLIPTextModel had before transformers 5."""
    found = {}
    for prefix, model in (("lora_unet", pipeline.unet), ("lora_te_text_model", pipeline.text_encoder)):
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[f"{prefix}_{path}".replace(".", "_")] = module
    return found


@torch.no_grad()
def apply(tensors: dict[str, Tensor], pipeline: Any) -> None:
    """Add a kohya file's updates to the weights as ComfyUI does: scale alpha / rank, or 1 without alpha."""
    layers = names_of(pipeline)
    for key in [key for key in tensors if key.endswith(".lora_up.weight")]:
        name = key.removesuffix(".lora_up.weight")
        up, down = tensors.pop(key), tensors.pop(f"{name}.lora_down.weight")
        alpha = tensors.pop(f"{name}.alpha", torch.tensor(float(down.shape[0])))
        update = up.float().flatten(1) @ down.float().flatten(1) * (alpha.item() / down.shape[0])
        weight: Tensor = layers[name].weight  # type: ignore[assignment]
        weight += update.view(weight.shape)
    assert not tensors


def test_what_we_write_is_what_kohya_programs_apply(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    ours, theirs = pipeline(), pipeline()
    adapter = adapt(ours, MIXED_RANKS, MIXED_ALPHAS)
    lorimer.save(adapter, tmp_path / "adapter.safetensors", format="kohya")
    apply(safe_io.read_safetensors(tmp_path / "adapter.safetensors")[0], theirs)
    for one, other in zip(outputs(theirs), outputs(ours), strict=True):
        assert relative_difference(one, other) < SAME_NETWORK_OUTPUT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_we_read_what_kohya_writes(dtype: torch.dtype, pipeline: Callable[[], Any], tmp_path: Path) -> None:
    """Mixed ranks, alphas in the file's own precision, and some layers without alpha."""
    ours, theirs = pipeline(), pipeline()
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for number, (name, layer) in enumerate(names_of(theirs).items()):
        rank, weight = 1 + number % 3, layer.weight
        assert isinstance(weight, Tensor)
        kernel = (1, 1) if weight.ndim == 4 else ()
        down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.2
        up = torch.randn(weight.shape[0], rank, *kernel, generator=generator) * 0.2
        tensors |= {f"{name}.lora_down.weight": down.to(dtype), f"{name}.lora_up.weight": up.to(dtype)}
        if number % 4:
            tensors[f"{name}.alpha"] = torch.tensor(number % 5 + 0.1, dtype=dtype)
    path = tmp_path / "adapter.safetensors"
    safe_io.write_safetensors(tensors, path, {"ss_sd_model_name": "sd-v1-5.safetensors", "ss_steps": "None"})
    lorimer.load(Parts(ours), path)
    assert lorimer.read(path).metadata == {"base_model": "sd-v1-5.safetensors"}
    apply(tensors, theirs)
    for one, other in zip(outputs(ours), outputs(theirs), strict=True):
        assert relative_difference(one, other) < SAME_NETWORK_OUTPUT


def test_names_of_a_whole_stable_diffusion() -> None:
    """Every layer of Stable Diffusion 1.5, and of U-Nets with rarer parts, comes back to its path."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    rare: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
        "class_embed_type": "timestep",
        "time_cond_proj_dim": 8,
        "encoder_hid_dim": 24,
        "encoder_hid_dim_type": "text_proj",
        "only_cross_attention": True,
        "attention_type": "gated",
    }
    simple: dict[str, Any] = {
        "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "block_out_channels": (32, 64),
        "cross_attention_dim": 16,
        "conv_in_kernel": 1,
    }
    with torch.device("meta"):
        models = [
            ("unet", UNet2DConditionModel(cross_attention_dim=768)),
            ("unet", UNet2DConditionModel(**rare)),
            ("unet", UNet2DConditionModel(**simple)),
            ("unet", UNet2DConditionModel(use_linear_projection=True, dual_cross_attention=False)),
            ("text_encoder", CLIPTextModel(CLIPTextConfig(num_hidden_layers=12))),
        ]
    count = 0
    for component, model in models:
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
                place = NAMES.place(f"{component}.{path}")
                assert place is not None and NAMES.places(place.native) == (place,)
                count += 1
    assert count > 900


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_0_attentions_0_to_x",
        "lora_unet_downblocks_0_conv",
        "lora_unet_",
        "lora_unet_conv_in_",
        "lora_unet__conv_in",
        "lora_te_text_model_encoder_layers_0_self_attn_qproj",
        "lora_unet_input_blocks_{}_0_op",
        "lora_vae_conv_in",
        "some_conv",
    ],
)
def test_unknown_names(name: str, tmp_path: Path) -> None:
    assert not NAMES.places(name)
    path = tmp_path / "adapter.safetensors"
    tensors = {f"{name}.lora_down.weight": torch.ones(1, 2), f"{name}.lora_up.weight": torch.ones(2, 1)}
    safe_io.write_safetensors(tensors, path)
    with pytest.raises(FileFormatError, match=name):
        lorimer.read(path, format="kohya")


def test_alpha_without_a_layer(tmp_path: Path) -> None:
    name, path = "lora_unet_conv_in", tmp_path / "adapter.safetensors"
    tensors = {f"{name}.lora_down.weight": torch.ones(1, 2), f"{name}.lora_up.weight": torch.ones(2, 1)}
    for key, value in [("lora_unet_conv_out.alpha", torch.tensor(1.0)), (f"{name}.alpha", torch.ones(3))]:
        safe_io.write_safetensors({**tensors, key: value}, path)
        with pytest.raises(FileFormatError, match="alpha"):
            lorimer.read(path)


def test_header_that_managers_read(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    ours = pipeline()
    adapter = adapt(ours, {"conv1": 2})
    facts = {
        "title": "Ink",
        "trigger": "in ink style",
        "base_model": "/x/sd15.safetensors",
        "resolution": "64",
        "steps": "9",
    }
    path = lorimer.save(adapter, tmp_path / "ink.safetensors", format="kohya", metadata=facts)
    header = safe_io.read_safetensors_header(path).metadata
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.title"] == header["ss_output_name"] == "Ink"
    assert header["modelspec.trigger_phrase"] == "in ink style"
    assert header["modelspec.resolution"] == "64x64"
    assert header["ss_sd_model_name"] == "sd15.safetensors"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "6")
    assert '"conv_dim"' in header["ss_network_args"]
    assert header["ss_steps"] == "9"


def test_hashes_as_kohya_computes_them(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    import hashlib

    path = lorimer.save(adapt(pipeline()), tmp_path / "ink.safetensors", format="kohya")
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = safe_io.read_safetensors_header(path).metadata
    assert header["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert header["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]  # less than a megabyte
