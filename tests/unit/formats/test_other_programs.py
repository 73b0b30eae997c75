"""What other programs write in kohya's way: LyCORIS, OneTrainer, A1111; and what they read of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import AdapterState, LoRA, registry
from lorimer.adapters._state import LayerState, ParameterState
from lorimer.errors import FileFormatError
from lorimer.formats import safe_io
from lorimer.ops.convert import convert
from tests.contracts.family_cases import FAMILIES, family_state
from tests.tolerances import SAME_UPDATE, relative_difference


def file(tmp_path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> Path:
    path = tmp_path / "adapter.safetensors"
    safe_io.write_safetensors(tensors, path, header or {"ss_base_model_version": "sd_v1-5"})
    return path


def merged(layer: nn.Module, path: Path, name: str) -> Tensor:
    """The layer's weight with the file's adapter on it, the file naming it `name`."""
    model = nn.Module()
    parent = model
    *parents, last = name.split(".")
    for each in parents:
        parent.add_module(each, nn.Module())
        parent = parent.get_submodule(each)
    parent.add_module(last, layer)
    lorimer.load(model, path)
    lorimer.merge(model)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach()


def test_locon_in_tucker_form(tmp_path: Path) -> None:
    """Three convolutions one after the other: 1 x 1 down, 3 x 3 in the middle, 1 x 1 up."""
    torch.manual_seed(0)
    down, middle, up = torch.randn(3, 5, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(4, 3, 1, 1)
    name = "lora_unet_conv_in"
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_mid.weight": middle,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(6.0),
    }
    path = file(tmp_path, {key: tensor.half() for key, tensor in tensors.items()})
    layer = nn.Conv2d(5, 4, 3, padding=1, bias=False)
    base = layer.weight.detach().clone()
    x = torch.randn(2, 5, 6, 6)
    inner = nn.functional.conv2d(
        nn.functional.conv2d(x, down.half().float()), middle.half().float(), padding=1
    )
    wanted = nn.functional.conv2d(inner, up.half().float()) * 2.0
    update = merged(layer, path, "unet.conv_in") - base
    assert relative_difference(nn.functional.conv2d(x, update, padding=1), wanted) < 1e-5


@pytest.mark.parametrize("tensors", ["no factors", "linear"])
def test_a_middle_without_its_convolution(tensors: str, tmp_path: Path) -> None:
    name = "lora_unet_conv_in"
    found = {f"{name}.lora_mid.weight": torch.ones(1, 1, 3, 3)}
    if tensors == "linear":
        found |= {f"{name}.lora_down.weight": torch.ones(1, 2), f"{name}.lora_up.weight": torch.ones(2, 1)}
    with pytest.raises(FileFormatError, match="lora_mid"):
        lorimer.read(file(tmp_path, found))


@pytest.mark.parametrize("on_output", [True, False], ids=["rows", "columns"])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_dora_on_either_axis(kind: str, on_output: bool, tmp_path: Path) -> None:
    """LyCORIS's formula: the weight with its update, each output's (or input's) part at a given norm."""
    torch.manual_seed(1)
    layer = nn.Linear(4, 4, bias=False) if kind == "linear" else nn.Conv2d(4, 4, 3, bias=False)
    weight = layer.weight.detach().clone()
    kernel = [1] * (weight.ndim - 2)
    down, up = torch.randn(2, *weight.shape[1:]), torch.randn(4, 2, *kernel)
    scale = torch.rand(4, 1, *kernel) + 0.5
    scale = scale if on_output else scale.transpose(0, 1).contiguous()
    name = "lora_unet_conv_in" if kind == "convolution" else "lora_unet_mid_block_resnets_0_time_emb_proj"
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.dora_scale": scale,
        f"{name}.alpha": torch.tensor(1.0),
    }
    path = file(tmp_path, tensors)
    direction = weight + (up.flatten(1) @ down.flatten(1)).view(weight.shape) / 2
    axes = [axis for axis in range(weight.ndim) if axis != (0 if on_output else 1)]
    wanted = scale * direction / direction.square().sum(axes, keepdim=True).sqrt()
    place = "unet.conv_in" if kind == "convolution" else "unet.mid_block.resnets.0.time_emb_proj"
    assert relative_difference(merged(layer, path, place), wanted) < 1e-5
    state = lorimer.read(path)
    again = tmp_path / "again.safetensors"
    lorimer.write(state, again, format="kohya")
    assert torch.equal(safe_io.read_safetensors(again)[0][f"{name}.dora_scale"], scale)
    if not on_output:
        with pytest.raises(FileFormatError, match="DoRA over columns"):
            lorimer.write(state, tmp_path / "peft", format="peft")


def test_magnitudes_of_neither_axis(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_resnets_0_time_emb_proj"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(1, 2),
        f"{name}.lora_up.weight": torch.ones(3, 1),
        f"{name}.dora_scale": torch.ones(5, 1),
    }
    with pytest.raises(FileFormatError, match="3 rows or its 2 columns"):
        lorimer.read(file(tmp_path, tensors))


def test_lokr_on_joined_layers(tmp_path: Path) -> None:
    """LyCORIS adapts the joined weight: its first factor's rows are shared out."""
    torch.manual_seed(2)
    first, second = torch.randn(6, 2), torch.randn(2, 3)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    path = file(
        tmp_path, {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}, {"ss_base_model_version": "flux1"}
    )
    whole = torch.kron(first, second)
    for number, part in enumerate(("to_q", "to_k", "to_v")):
        layer = nn.Linear(6, 4, bias=False)
        base = layer.weight.detach().clone()
        state = lorimer.read(path)
        module = f"transformer.transformer_blocks.0.attn.{part}"
        state.layers = {module: state.layers[module]}
        single = tmp_path / f"{part}.safetensors"
        lorimer.write(state, single, format="lorimer")
        update = merged(layer, single, module) - base
        assert relative_difference(update, whole[4 * number : 4 * number + 4]) < SAME_UPDATE
    uneven = {f"{name}.lokr_w1": torch.randn(2, 2), f"{name}.lokr_w2": torch.randn(6, 3)}
    with pytest.raises(FileFormatError, match=r"to_q.*cannot be read"):
        lorimer.read(file(tmp_path, uneven, {"ss_base_model_version": "flux1"}))


def test_onetrainer_counts_text_encoders_otherwise(tmp_path: Path) -> None:
    """FLUX's T5 is its second text encoder, in ComfyUI's and kohya's files the third."""
    found = []
    for name in ("lora_te2_", "lora_te3_"):
        tensors = {
            f"{name}encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": torch.ones(1, 2),
            f"{name}encoder_block_0_layer_0_SelfAttention_q.lora_up.weight": torch.ones(2, 1),
            "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight": torch.ones(1, 2),
            "lora_transformer_transformer_blocks_0_attn_to_q.lora_up.weight": torch.ones(2, 1),
            "lora_transformer_norm_out_linear.lora_down.weight": torch.ones(1, 2),
            "lora_transformer_norm_out_linear.lora_up.weight": torch.arange(4.0).view(4, 1),
        }
        state = lorimer.read(file(tmp_path, tensors, {"modelspec.architecture": "Flux.1-dev/lora"}))
        assert state.metadata["family"] == "flux"
        assert state.layers["transformer.norm_out.linear"].tensors["B"].flatten().tolist() == [0, 1, 2, 3]
        found.append(set(state.layers))
    assert found[0] == found[1]
    assert "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q" in found[0]


def test_diffusers_names_beside_tokens(tmp_path: Path) -> None:
    """OneTrainer's files in diffusers' names, with what it calls the embeddings of the text encoders."""
    names = (
        "transformer.single_transformer_blocks.3.proj_mlp",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    )
    tensors = {"bundle_emb.me.clip_l": torch.ones(1, 4), "bundle_emb.me.t5": torch.ones(2, 6)}
    for name in names:
        tensors |= {f"{name}.lora_A.weight": torch.ones(1, 2), f"{name}.lora_B.weight": torch.ones(3, 1)}
        tensors[f"{name}.lora_magnitude_vector.weight"] = torch.ones(3)
    state = lorimer.read(file(tmp_path, tensors, {"other": "entry"}))
    assert state.method == "dora"
    assert set(state.layers) == {names[0], "text_encoder.encoder.layers.0.mlp.fc1"}
    assert {name: each.rows for name, each in state.full.items()} == {
        "text_encoder.embeddings.token_embedding.weight": (49408,),
        "text_encoder_2.shared.weight": (32128, 32129),
    }


def test_no_key_is_lost(tmp_path: Path) -> None:
    """A file with a layer of another family, a weight's difference, or a spelling twice."""
    good = {
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(1, 2),
        "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(2, 1),
    }
    strange: dict[str, dict[str, Tensor]] = {
        "input_blocks_4_1_proj_in": {
            "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.ones(1, 2),
            "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": torch.ones(2, 1),
        },
        r"img_in\.diff": {"lora_unet_img_in.diff": torch.ones(2, 2)},
        "two names": {
            "diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": torch.ones(1, 2),
            "diffusion_model.double_blocks.0.img_attn.proj.lora_B.weight": torch.ones(2, 1),
        },
        "bundled": {"bundle_emb.cat.clip_l_out": torch.ones(1, 2)},
    }
    for said, more in strange.items():
        with pytest.raises(FileFormatError, match=said):
            lorimer.read(file(tmp_path, {**good, **more}, {"ss_base_model_version": "flux1"}))


# ---- spellings


_SD = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
_FLUX = "transformer_blocks.0.attn"
_CLIP = "encoder.layers.0.self_attn"
_LAYER = {"A": ".lora_A.weight", "B": ".lora_B.weight"}
_DOWN = {"A": ".lora_down.weight", "B": ".lora_up.weight"}


def _pair(name: str) -> dict[str, str]:
    return {"A": f"{name}down.weight", "B": f"{name}up.weight"}


@pytest.mark.parametrize(
    ("name", "suffixes", "module"),
    [
        (f"unet.{_SD}.to_q", _pair(".lora."), f"unet.{_SD}.to_q"),
        (f"unet.{_SD}.to_out.0", _pair(".lora."), f"unet.{_SD}.to_out.0"),
        (f"unet.{_SD}", _pair(".processor.to_q_lora."), f"unet.{_SD}.to_q"),
        (f"unet.{_SD}", _pair(".processor.to_out_lora."), f"unet.{_SD}.to_out.0"),
        (_SD, _pair(".processor.to_v_lora."), f"unet.{_SD}.to_v"),
        (_SD, _pair(".to_out_lora."), f"unet.{_SD}.to_out.0"),
        (f"{_SD}.to_k", _LAYER, f"unet.{_SD}.to_k"),
        (f"unet.{_SD}.to_k", {key: f"{each[:7]}.default.weight" for key, each in _LAYER.items()},
         f"unet.{_SD}.to_k"),
        (f"text_encoder.text_model.{_CLIP}.q_proj", _pair(".lora_linear_layer."),
         f"text_encoder.{_CLIP}.q_proj"),
        (f"text_encoder.text_model.{_CLIP}", _pair(".to_out_lora."), f"text_encoder.{_CLIP}.out_proj"),
        (f"base_model.model.{_SD}.to_q", _LAYER, f"unet.{_SD}.to_q"),
        (f"base_model.model.unet.{_SD}.to_q", _LAYER, f"unet.{_SD}.to_q"),
        (f"base_model.model.single_{_FLUX}.to_q", _LAYER, f"transformer.single_{_FLUX}.to_q"),
        ("base_model.model.double_blocks.0.img_attn.proj", _LAYER, f"transformer.{_FLUX}.to_out.0"),
        (f"transformer.{_FLUX}.to_q", _DOWN, f"transformer.{_FLUX}.to_q"),
        (f"{_FLUX}.to_q", _DOWN, f"transformer.{_FLUX}.to_q"),
        ("double_blocks.0.img_attn.proj", _LAYER, f"transformer.{_FLUX}.to_out.0"),
    ],
)  # fmt: skip
def test_spellings_of_other_programs(
    name: str, suffixes: dict[str, str], module: str, tmp_path: Path
) -> None:
    """One layer, its update reckoned from the keys alone."""
    torch.manual_seed(4)
    down, up = torch.randn(2, 6), torch.randn(4, 2)
    tensors, scale = {name + suffixes["A"]: down, name + suffixes["B"]: up}, 1.0
    if "_lora." not in suffixes["A"]:  # the oldest have no alphas
        tensors[f"{name}.alpha"], scale = torch.tensor(1.0), 0.5
    path = file(tmp_path, tensors, {"format": "pt"})
    assert sum(registry.get("format", each).detect(path) for each in registry.names("format")) == 1
    assert set(lorimer.read(path).layers) == {module}
    layer = nn.Linear(6, 4, bias=False)
    base = layer.weight.detach().clone()
    assert relative_difference(merged(layer, path, module) - base, scale * up @ down) < SAME_UPDATE


def test_joined_layers_without_a_beginning(tmp_path: Path) -> None:
    down, up = torch.randn(2, 6), torch.randn(12, 2)
    name = "double_blocks.0.img_attn.qkv"
    state = lorimer.read(file(tmp_path, {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}))
    assert set(state.layers) == {f"transformer.{_FLUX}.to_{each}" for each in "qkv"}
    rows = [layer.tensors["B"] @ layer.tensors["A"] * layer.scale for layer in state.layers.values()]
    assert relative_difference(torch.cat(rows), up @ down) < SAME_UPDATE


def test_spellings_lose_no_key(tmp_path: Path) -> None:
    good = {f"{_FLUX}.to_q.lora_A.weight": torch.ones(1, 2), f"{_FLUX}.to_q.lora_B.weight": torch.ones(2, 1)}
    strange: dict[str, dict[str, Tensor]] = {
        r"'stranger\.weight'": {"stranger.weight": torch.ones(2)},
        "some_blocks": {f"some_blocks.lora_{each}.weight": torch.ones(1, 1) for each in "AB"},
        "two names": {f"transformer.{_FLUX}.to_q.lora_A.weight": torch.ones(1, 2),
                      f"transformer.{_FLUX}.to_q.lora_B.weight": torch.ones(2, 1)},
        "alphas without a layer": {f"{_FLUX}.to_k.alpha": torch.ones(())},
    }  # fmt: skip
    for said, more in strange.items():
        with pytest.raises(FileFormatError, match=said):
            lorimer.read(file(tmp_path, {**good, **more}))
    with pytest.raises(FileFormatError, match="lora_adapter_metadata"):
        lorimer.read(file(tmp_path, good, {"lora_adapter_metadata": json.dumps({"lora_alpha": 4, "r": 1})}))


def test_weights_of_a_model_and_adapters_of_others_are_not_taken_for_ours(tmp_path: Path) -> None:
    for tensors in (
        {"double_blocks.0.img_attn.qkv.weight": torch.ones(3, 1)},
        {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{each}.weight": torch.ones(1, 1)
         for each in "AB"},
    ):  # fmt: skip
        with pytest.raises(FileFormatError, match="not an adapter that lorimer knows"):
            lorimer.read(file(tmp_path, tensors))


def test_the_family_that_is_said_decides_how_a_file_is_read(tmp_path: Path) -> None:
    """FLUX.1 and FLUX.2 call the layers of their double blocks the same; diffusers' modules differ."""
    name = "diffusion_model.double_blocks.0.img_mlp.0"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 2), f"{name}.lora_B.weight": torch.ones(4, 1)}
    path = file(tmp_path, tensors, {"format": "pt"})
    for family, module in (("flux", "ff.net.0.proj"), ("flux2-klein", "ff.linear_in")):
        state = lorimer.read(convert(path, tmp_path / f"{family}.safetensors", to="lorimer", family=family))
        assert state.metadata["family"] == family
        assert set(state.layers) == {f"transformer.transformer_blocks.0.{module}"}


# ---- tokens


TOKENS = {
    "<cat>": {"text_encoder": [49408, 49409], "text_encoder_2": [49408]},
    "sks-dog": {"text_encoder": [49410], "text_encoder_2": [49409, 49410]},
}


def with_tokens() -> AdapterState:
    state = family_state("sdxl")
    for component, width, level in (("text_encoder", 4, ""), ("text_encoder_2", 6, "text_model.")):
        rows = tuple(row for own in TOKENS.values() for row in own[component])
        name = f"{component}.{level}embeddings.token_embedding.weight"
        state.full[name] = ParameterState(torch.randn(len(rows), width), rows)
    state.metadata["tokens"] = json.dumps(TOKENS)
    return state


def test_tokens_come_back_to_the_bit(tmp_path: Path) -> None:
    state = with_tokens()
    path = tmp_path / "adapter.safetensors"
    lorimer.write(state, path, format="kohya")
    tensors, _ = safe_io.read_safetensors(path)
    assert tensors["bundle_emb.<cat>.clip_l"].shape == (2, 4)
    assert tensors["bundle_emb.sks-dog.clip_g"].shape == (2, 6)
    found = lorimer.read(path)
    assert found.metadata == state.metadata
    assert found.full.keys() == state.full.keys()
    for name, parameter in state.full.items():
        assert found.full[name].rows == parameter.rows
        assert torch.equal(found.full[name].value, parameter.value)
    again = lorimer.read(convert(path, tmp_path / "again.safetensors", to="lorimer"))
    assert all(torch.equal(again.full[name].value, each.value) for name, each in state.full.items())


def test_tokens_alone(tmp_path: Path) -> None:
    state = with_tokens()
    state.layers, state.method = {}, "full"
    state.config = {}
    path = tmp_path / "adapter.safetensors"
    lorimer.write(state, path, format="kohya")
    found = lorimer.read(path)
    assert not found.layers and found.full.keys() == state.full.keys()
    tensors, header = safe_io.read_safetensors(path)
    for key in tensors:
        rest = {name: tensor for name, tensor in tensors.items() if name != key}
        safe_io.write_safetensors(rest, path, header)
        with pytest.raises(FileFormatError):
            lorimer.read(path)


@pytest.mark.parametrize("kind", ["clip_l", "string_to_param.*", "emb_params"])
def test_tokens_of_other_programs(kind: str, tmp_path: Path) -> None:
    """Files do not say which rows they are; they come behind those of the vocabulary."""
    one, two = torch.randn(2, 4), torch.randn(4)
    tensors = {
        f"bundle_emb.one.{kind}": one,
        f"bundle_emb.two.{kind}": two,
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 1),
    }
    state = lorimer.read(file(tmp_path, tensors))
    parameter = state.full["text_encoder.embeddings.token_embedding.weight"]
    assert parameter.rows == (49408, 49409, 49410)
    assert torch.equal(parameter.value, torch.cat([one, two[None]]))
    assert json.loads(state.metadata["tokens"]) == {
        "one": {"text_encoder": [49408, 49409]},
        "two": {"text_encoder": [49410]},
    }


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (None, "which rows"),
        ({"<cat>": {"text_encoder": [49408]}}, "which rows"),
        ({**TOKENS, "b.c": TOKENS["<cat>"], "<cat>": {}}, "called 'b.c'"),
        (["<cat>"], "must be"),
        ({"<cat>": {"text_encoder": ["a"]}}, "must be"),
    ],
)
def test_tokens_that_nobody_could_find(tokens: Any, said: str, tmp_path: Path) -> None:
    state = with_tokens()
    del state.metadata["tokens"]
    if tokens is not None:
        state.metadata["tokens"] = json.dumps(tokens)
    with pytest.raises(FileFormatError, match=said):
        lorimer.write(state, tmp_path / "adapter.safetensors", format="kohya")


# ---- families and headers


@pytest.mark.parametrize("family", FAMILIES)
def test_header_names_the_family(family: str, tmp_path: Path) -> None:
    state = family_state(family)
    state.metadata["thumbnail"] = "data:image/jpeg;base64,/9j/4AAQ"
    path = tmp_path / "adapter.safetensors"
    lorimer.write(state, path, format="kohya")
    header = safe_io.read_safetensors_header(path).metadata
    names = registry.get("family", family).kohya
    assert header["modelspec.architecture"] == f"{names.architecture}/lora" != "/lora"
    assert header["ss_base_model_version"] == names.base_version != ""
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.trigger_phrase"] == "in ink style"
    assert header["modelspec.thumbnail"].startswith("data:image/jpeg")
    assert header["modelspec.resolution"] == f"{names.side}x{names.side}"
    del header["lorimer_adapter"]  # another program's file of the same name is known by these entries
    tensors, _ = safe_io.read_safetensors(path)
    safe_io.write_safetensors(tensors, path, header)
    assert lorimer.read(path).metadata["family"] == family


@pytest.mark.parametrize(
    ("thumbnail", "said"),
    [("/home/somebody/a.png", "not a path"), ("data:image/png;base64," + "A" * 2**20, "256 x 256")],
)
def test_thumbnails_that_do_not_belong_into_a_header(thumbnail: str, said: str, tmp_path: Path) -> None:
    state = family_state("sd1")
    state.metadata["thumbnail"] = thumbnail
    with pytest.raises(FileFormatError, match=said):
        lorimer.write(state, tmp_path / "adapter.safetensors", format="kohya")


def test_a_model_that_predicts_velocity(tmp_path: Path) -> None:
    state = family_state("sd2")
    state.metadata["prediction_type"] = "v_prediction"
    path = tmp_path / "adapter.safetensors"
    lorimer.write(state, path, format="kohya")
    header = safe_io.read_safetensors_header(path).metadata
    assert header["modelspec.prediction_type"] == "v"
    assert header["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert lorimer.read(path).metadata["prediction_type"] == "v_prediction"


def attention(inputs: int) -> AdapterState:
    """A layer that Stable Diffusion 1, 2 and XL have, but for its width."""
    layer = LayerState({"A": torch.ones(1, inputs), "B": torch.ones(2, 1)}, 1, 1.0)
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    return AdapterState("lora", {path: layer}, components=("unet",))


@pytest.mark.parametrize(
    ("inputs", "begins"), [(768, "lora_unet_down_blocks"), (2048, "lora_unet_input_blocks")]
)
def test_the_family_shows_in_the_width(inputs: int, begins: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    lorimer.write(attention(inputs), path, format="kohya")
    assert all(key.startswith(begins) for key in safe_io.read_safetensors(path)[0])


def test_the_family_must_be_said_where_nothing_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(FileFormatError, match=r"'sd1' or .*metadata="):
        lorimer.write(attention(16), path, format="kohya")
    state = attention(16)
    state.metadata["family"] = "sdxl"
    lorimer.write(state, path, format="kohya")
    assert lorimer.read(path).layers.keys() == state.layers.keys()
    state.metadata["family"] = "flux"
    with pytest.raises(FileFormatError, match="'flux'"):
        lorimer.write(state, path, format="kohya")


def test_a_model_tells_its_family(tmp_path: Path) -> None:
    class Model(nn.Module):
        family = registry.get("family", "sdxl")
        components = ("unet",)

    model = Model()
    model.unet = nn.ModuleDict({"conv_in": nn.Conv2d(4, 4, 1)})
    adapter = lorimer.attach(model, LoRA(rank=1), ["unet.conv_in"])
    lorimer.save(adapter, tmp_path / "a.safetensors", format="kohya")
    assert "lora_unet_input_blocks_0_0.alpha" in safe_io.read_safetensors(tmp_path / "a.safetensors")[0]


@pytest.mark.parametrize(
    ("entry", "value", "family"),
    [
        ("ss_base_model_version", "sd_v1", "sd1"),
        ("ss_base_model_version", "sd_1.5", "sd1"),
        ("ss_base_model_version", "sd_v2_v", "sd2"),
        ("ss_base_model_version", "sdxl_1.0", "sdxl"),
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora", "sdxl"),
        ("modelspec.architecture", "stable-diffusion-v2-768-v/lora", "sd2"),
        ("modelspec.architecture", "Something-Else", None),
    ],
)
def test_headers_tell_the_family(entry: str, value: str, family: str | None, tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": torch.ones(1, 16), f"{name}.lora_up.weight": torch.ones(2, 1)}
    state = lorimer.read(file(tmp_path, tensors, {entry: value}))
    assert state.metadata.get("family") == family
    assert state.layers.keys() == attention(16).layers.keys()
