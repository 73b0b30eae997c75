"""What other programs write, read by us: our outputs equal theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import lorimer
from lorimer.errors import FileFormatError
from lorimer.formats import safe_io
from tests.tolerances import SAME_NETWORK_OUTPUT, relative_difference
from tests.unit.formats.conftest import Parts, outputs

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def perturb(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_peft_folder(rslora: bool, pipeline: Callable[[], Any], tmp_path: Path) -> None:
    """Patterns as people write them: endings of names, and regular expressions."""
    theirs, ours = pipeline(), pipeline()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=9,
        target_modules=["to_q", "to_k", "conv1", "to_out.0", "proj_in"],
        rank_pattern={"to_k": 2, r"mid_block\..*to_q": 3, "conv1": 1},
        alpha_pattern={"attn2.to_q": 1, r"^up_blocks\.0.*conv1": 2.5},
        use_rslora=rslora,
    )
    model = peft.get_peft_model(theirs.unet, config)
    perturb(model)
    model.save_pretrained(tmp_path / "adapter")
    theirs.unet = model.eval()
    adapter = lorimer.load(ours.unet, tmp_path / "adapter")
    for one, other in zip(outputs(ours), outputs(theirs), strict=True):
        assert relative_difference(one, other) < SAME_NETWORK_OUTPUT
    again = lorimer.read(lorimer.save(adapter, tmp_path / "again"))
    for path, layer in lorimer.read(tmp_path / "adapter").layers.items():
        assert again.layers[path].alpha == layer.alpha
        assert all(torch.equal(again.layers[path].tensors[name], t) for name, t in layer.tensors.items())


@pytest.mark.parametrize("with_metadata", [True, False])
def test_diffusers_file(with_metadata: bool, pipeline: Callable[[], Any], tmp_path: Path) -> None:
    """With its metadata alpha is what it was; without, diffusers itself takes alpha = rank, and so do we."""
    from diffusers import StableDiffusionPipeline

    theirs, ours = pipeline(), pipeline()
    options = {"r": 4, "lora_alpha": 4 if not with_metadata else 10}
    theirs.unet.add_adapter(peft.LoraConfig(**options, target_modules=["to_q", "to_v", "conv2", "proj_out"]))
    theirs.text_encoder.add_adapter(peft.LoraConfig(**options, target_modules=["q_proj", "fc2"]))
    perturb(theirs.unet)
    perturb(theirs.text_encoder)
    metadata: dict[str, Any] = {}
    if with_metadata:
        metadata = {
            "unet_lora_adapter_metadata": theirs.unet.peft_config["default"].to_dict(),
            "text_encoder_lora_adapter_metadata": theirs.text_encoder.peft_config["default"].to_dict(),
        }
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=peft.get_peft_model_state_dict(theirs.unet),
        text_encoder_lora_layers=peft.get_peft_model_state_dict(theirs.text_encoder, adapter_name="default"),
        weight_name="adapter.safetensors",
        **metadata,
    )
    lorimer.load(Parts(ours), tmp_path / "adapter.safetensors")
    for one, other in zip(outputs(ours), outputs(theirs), strict=True):
        assert relative_difference(one, other) < SAME_NETWORK_OUTPUT


def test_old_names_of_the_text_encoder(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    """Files from before transformers 5 have `text_model.` in them, those written since may not."""
    found = []
    for level in ("text_model.", ""):
        generator = torch.Generator().manual_seed(0)
        name = f"text_encoder.{level}encoder.layers.0.self_attn.q_proj.lora_"
        tensors = {
            f"{name}A.weight": torch.randn(2, 16, generator=generator),
            f"{name}B.weight": torch.randn(16, 2, generator=generator),
        }
        entry = {
            "text_encoder.r": 2,
            "text_encoder.alpha_pattern": {f"{level}encoder.layers.0.self_attn.q_proj": 7},
        }
        path = tmp_path / f"{level}adapter.safetensors"
        safe_io.write_safetensors(tensors, path, {"lora_adapter_metadata": json.dumps(entry)})
        ours = pipeline()
        lorimer.load(ours.text_encoder, path, component="text_encoder")
        found.append(outputs(ours)[0])
        assert next(iter(lorimer.read(path).layers.values())).alpha == 7
    assert torch.equal(*found)


def peft_folder(folder: Path, **config: Any) -> Path:
    """A PEFT folder for one Linear of 4 x 4 at "a.b", rank 2."""
    folder.mkdir()
    tensors = {
        "base_model.model.a.b.lora_A.weight": torch.ones(2, 4),
        "base_model.model.a.b.lora_B.weight": torch.ones(4, 2),
    }
    safe_io.write_safetensors(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["b"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
        ({"bias": "some"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"a_field_of_tomorrow": 2}, "a_field_of_tomorrow"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"r": 3}, "rank 3"),
        ({"rank_pattern": {"b": 5}}, "rank 5"),
        ({"r": 0}, "rank must be"),
        ({"r": 10**12}, "rank must be"),
        ({"rank_pattern": {"b": 10**400}}, "rank must be"),
        ({"r": True}, "rank must be"),
        ({"r": "2"}, "rank must be"),
        ({"lora_alpha": "3"}, "alpha must be"),
        ({"lora_alpha": 10**400}, "alpha must be"),
        ({"alpha_pattern": {"b": None}}, "alpha must be"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be a mapping"),
        ({"alpha_pattern": {"(b": 1}}, "not a pattern"),
        ({"alpha_pattern": {"(b+)+": 1}}, "too complicated"),
        ({"rank_pattern": {"(.*a){30}x": 1}}, "too complicated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_peft_config(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=named):
        lorimer.read(peft_folder(tmp_path / "adapter", **config))


@pytest.mark.parametrize(
    "config",
    [
        {"a_field_of_tomorrow": None, "another": False, "third": {}},
        {"inference_mode": True, "lora_dropout": 0.1, "task_type": "CAUSAL_LM", "revision": "main"},
        {"init_lora_weights": "gaussian"},
        {"rank_pattern": None, "alpha_pattern": None},
    ],
)
def test_harmless_peft_config(config: dict[str, Any], tmp_path: Path) -> None:
    layer = lorimer.read(peft_folder(tmp_path / "adapter", **config)).layers["a.b"]
    assert (layer.rank, layer.alpha) == (2, 3)


def test_peft_defaults(tmp_path: Path) -> None:
    """A config without r means PEFT's default, which here disagrees with the tensors."""
    folder = peft_folder(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(FileFormatError, match="rank 8"):
        lorimer.read(folder)


def test_peft_weights_named_directly(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "adapter", base_model_name_or_path="org/base")
    state = lorimer.read(folder / "adapter_model.safetensors")
    assert state.metadata == {"base_model": "org/base"}


def test_folder_of_several_adapters(tmp_path: Path) -> None:
    """Named adapters beside each other are no components."""
    (tmp_path / "both").mkdir()
    for name in ("one", "two"):
        peft_folder(tmp_path / "both" / name)
    with pytest.raises(FileFormatError, match="'one', 'two'"):
        lorimer.read(tmp_path / "both")
    assert lorimer.read(tmp_path / "both" / "one").components == ()


def test_pickled_peft_weights(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FileFormatError, match=r"pickle.*\.safetensors"):
        lorimer.read(folder)


def test_parts_of_another_adapter_are_not_mixed(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    from tests.unit.formats.conftest import adapt

    both, one = pipeline(), pipeline()
    lorimer.save(adapt(both), tmp_path / "adapter")
    adapter = adapt(one, targets="re:unet\\..*to_q")
    with pytest.raises(FileFormatError, match="'text_encoder'"):
        lorimer.save(adapter, tmp_path / "adapter")
    assert set(lorimer.read(tmp_path / "adapter").components) == {"unet", "text_encoder"}


@pytest.mark.parametrize(
    ("first", "second", "suffixes"),
    [
        (
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
            "lora_te_encoder_layers_0_mlp_fc1",
            ("lora_down", "lora_up"),
        ),
        ("text_encoder.text_model.encoder.x", "text_encoder.encoder.x", ("lora_A", "lora_B")),
    ],
)
def test_a_layer_under_two_names(first: str, second: str, suffixes: tuple[str, str], tmp_path: Path) -> None:
    """One of the two would be lost."""
    tensors = {f"{name}.{suffix}.weight": torch.ones(1, 1) for name in (first, second) for suffix in suffixes}
    path = tmp_path / "adapter.safetensors"
    safe_io.write_safetensors(tensors, path)
    with pytest.raises(FileFormatError, match="two names"):
        lorimer.read(path)


@pytest.mark.parametrize(
    ("name", "rows", "columns", "layer"),
    [
        (
            "diffusion_model.transformer_blocks.0.attn.add_q_proj",
            3072,
            3072,
            "transformer.transformer_blocks",
        ),
        ("lycoris_transformer_blocks_0_attn_to_q", 3072, 3072, "transformer.transformer_blocks"),
        ("diffusion_model.single_blocks.0.linear1", 27648, 3072, "attn.to_qkv_mlp_proj"),  # FLUX.2 klein's
        ("diffusion_model.layers.0.attention.qkv", 11520, 3840, "layers.0.attention.to_q"),  # Z-Image's
        ("diffusion_model.layers.0.attention.qkv", 3840, 2304, "layers.0.attn.to_q"),  # Lumina's
    ],
)
def test_names_that_families_share_are_told_apart_by_shape(
    name: str, rows: int, columns: int, layer: str, tmp_path: Path
) -> None:
    tensors = {
        f"{name}.lora_A.weight": torch.zeros(1, columns),
        f"{name}.lora_B.weight": torch.zeros(rows, 1),
    }
    safe_io.write_safetensors(tensors, tmp_path / "adapter.safetensors", {})
    state = lorimer.read(tmp_path / "adapter.safetensors")
    assert state.components == ("transformer",)
    assert any(layer in path for path in state.layers)


def test_blocks_that_end_across_swapped_halves_are_refused(tmp_path: Path) -> None:
    """A Kronecker product of three blocks has no halves that could change places."""
    name = "lora_unet_final_layer_adaLN_modulation_1"
    tensors = {f"{name}.lokr_w1": torch.randn(3, 1), f"{name}.lokr_w2": torch.randn(4, 6)}
    path = tmp_path / "adapter.safetensors"
    safe_io.write_safetensors(tensors, path, {"ss_base_model_version": "flux1"})
    with pytest.raises(FileFormatError, match="3 blocks"):
        lorimer.read(path)
