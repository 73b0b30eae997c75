"""Checkpoints in one file: loaded, and merged into, with diffusers' own converters as the second opinion."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorimer as library
from lorimer import LoRA, registry
from lorimer.errors import FileFormatError, UsageError
from lorimer.families._clip_vocabulary import clip_merges, clip_vocabulary
from lorimer.families._layout import Held
from lorimer.formats.safe_io import read_safetensors, read_safetensors_header, write_safetensors
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion
from lorimer.tasks._model_files import model_files
from lorimer.tasks._model_parts import MadeTokenizer, shapes_of, skeleton_of
from tests.tiny_families import save_tiny_family
from tests.unit.cli.running import lorimer

LEAVES = ("weight", "bias")
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
TARGETS = (
    r"re:(unet|transformer|text_encoder|text_encoder_2|text_encoder_3)\..*\.(to_q|to_v|add_q_proj|q_proj|fc1|linear_1"
    r"|norm_out\.linear|norm1_context\.linear|proj_mlp|proj_out|conv1|token_embedding)"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_tiny_family(name, tmp_path_factory.mktemp("families") / name)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def checkpoints(
    folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The same model in one file."""
    made: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in made:
            place = tmp_path_factory.mktemp("files")
            adapter = save_adapter(load_diffusion(str(folders(name))), place / "adapter.safetensors")
            made[name] = place / f"{name}.safetensors"
            ran = merge(adapter, folders(name), made[name], "--strength", 0)
            assert ran["merged"] == 0
        return made[name]

    return checkpoint


def save_adapter(model: DiffusionModel, path: Path, method: Any = None) -> Path:
    torch.manual_seed(1)
    adapter = library.attach(model, method or LoRA(rank=2), TARGETS)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return library.write(adapter.state(), path, format="lorimer")


def merge(adapter: Path, model: Path, output: Path, *more: object) -> dict[str, Any]:
    ran = lorimer("merge", adapter, "--model", model, "--output", output, "--json", *more)
    assert ran.code == 0, ran.err
    facts: dict[str, Any] = json.loads(ran.out)
    return facts


def mapping(file: Path, folder: Path) -> dict[str, str]:
    return {"path": str(file), "config": str(folder)}


def tensors(model: DiffusionModel) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, part in model.family.parts.items()
        if part.kind == "network"
        for key, value in getattr(model, name).state_dict().items()
    }


# ---- names and shapes at full size


def full_size(
    family: str, component: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor], dict[str, Any]]:
    """Shapes of our module; a checkpoint's part on the meta device as our layout has it; the config."""
    single = registry.get("family", family).single_file
    config = json.loads((single.folder / component / "config.json").read_text())
    shapes = shapes_of(skeleton_of(registry.get("family", family).parts[component], config))
    layout = single.layouts[component](config)[0]
    with torch.device("meta"):
        native = {
            layout.prefixes[0] + key: torch.empty(native_shape(held))
            for key, held in layout.held(shapes).items()
        }
    return shapes, native, config


def native_shape(all_held: tuple[Held, ...]) -> tuple[int, ...]:
    first = all_held[0]
    shape = (sum(held.shape[0] for held in all_held), *first.shape[1:])
    return shape[::-1] if first.transposed else shape


@pytest.mark.parametrize(
    ("family", "component", "count"),
    [
        ("sd1", "unet", 686),
        ("sd2", "unet", 686),
        ("sdxl", "unet", 1680),
        ("sdxl", "vae", 248),
        ("sd3", "transformer", 491),
        ("flux", "transformer", 780),
    ],
)
def test_full_size_names_are_those_that_diffusers_reads(family: str, component: str, count: int) -> None:
    from diffusers.loaders import single_file_utils as theirs

    shapes, native, config = full_size(family, component)
    assert len(native) == count  # as many as the published files have
    convert = {
        "unet": lambda: theirs.convert_ldm_unet_checkpoint(native, config),
        "vae": lambda: theirs.convert_ldm_vae_checkpoint(native, config),
        "transformer": lambda: (
            theirs.convert_sd3_transformer_checkpoint_to_diffusers(native)
            if family == "sd3"
            else theirs.convert_flux_transformer_checkpoint_to_diffusers(native)
        ),
    }[component]
    assert {name: tuple(value.shape) for name, value in convert().items()} == shapes


def open_clip(width: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of OpenCLIP's text tower, spelled from its modules (open_clip.transformer)."""
    block = {
        "ln_1.weight": (width,), "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,), "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
    }  # fmt: skip
    around = {
        "token_embedding.weight": (49408, width), "positional_embedding": (77, width),
        "ln_final.weight": (width,), "ln_final.bias": (width,),
    }  # fmt: skip
    blocks = {
        f"transformer.resblocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()
    }
    return {**around, **blocks}


@pytest.mark.parametrize(
    ("family", "component", "expected"),
    [
        (
            "sdxl",
            "text_encoder_2",
            {f"conditioner.embedders.1.model.{name}": shape for name, shape in open_clip(1280, 32).items()}
            | {"conditioner.embedders.1.model.text_projection": (1280, 1280)},
        ),
        (
            "sd2",
            "text_encoder",
            {f"cond_stage_model.model.{name}": shape for name, shape in open_clip(1024, 23).items()},
        ),
    ],
)
def test_full_size_names_of_open_clip(
    family: str, component: str, expected: dict[str, tuple[int, ...]]
) -> None:
    _, native, _ = full_size(family, component)
    assert {name: tuple(value.shape) for name, value in native.items()} == expected


def test_full_size_names_of_clip_keep_the_level_that_transformers_lost() -> None:
    _, native, _ = full_size("sd1", "text_encoder")
    assert len(native) == 196
    names = {name.removeprefix("cond_stage_model.transformer.") for name in native}
    assert {name.split(".")[0] for name in names} == {"text_model"}
    assert "text_model.encoder.layers.11.self_attn.q_proj.weight" in names


# ---- values


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_file_is_the_folder(
    name: str, folders: Callable[[str], Path], checkpoints: Callable[[str], Path]
) -> None:
    folder = load_diffusion(str(folders(name)))
    loaded = load_diffusion(mapping(checkpoints(name), folders(name)))
    assert loaded.family.name == name and loaded.prediction_type == folder.prediction_type
    wanted, found = tensors(folder), tensors(loaded)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_reads_the_same_weights_out_of_a_merged_file(
    name: str, folders: Callable[[str], Path], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its converters know nothing of ours; what they give is the live model with the adapter folded in."""
    from diffusers.loaders import single_file_utils as theirs

    model = load_diffusion(str(folders(name)))
    adapter = save_adapter(model, tmp_path / "adapter.safetensors")
    told = merge_with_config(adapter, checkpoints(name), folders(name), tmp_path / "merged.safetensors")
    report = library.merge(model, keep_original=False)
    assert told == len(report.merged) > 10
    file, _ = read_safetensors(tmp_path / "merged.safetensors")
    native = {key: value for key, value in file.items() if key.startswith("model.diffusion_model.")}
    if name == "flux":  # whose converter knows the full width alone
        found = flux_by_hand({key.removeprefix("model.diffusion_model."): native[key] for key in native})
    elif name == "sd3":
        found = theirs.convert_sd3_transformer_checkpoint_to_diffusers(dict(native))
    else:
        found = theirs.convert_ldm_unet_checkpoint(dict(native), dict(model.unet.config))
    wanted = model.denoiser.state_dict()
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
    decoded = theirs.convert_ldm_vae_checkpoint(file, dict(model.vae.config))
    assert all(
        torch.equal(decoded[key].reshape(value.shape), value) for key, value in model.vae.state_dict().items()
    )


def flux_by_hand(native: dict[str, Tensor]) -> dict[str, Tensor]:
    """What Black Forest Labs' modules are in diffusers' FluxTransformer2DModel, spelled out."""
    layers = {
        "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    }  # fmt: skip
    found = {f"{own}.{leaf}": native[f"{name}.{leaf}"] for name, own in layers.items() for leaf in LEAVES}
    for leaf in LEAVES:
        shift, scale = native[f"final_layer.adaLN_modulation.1.{leaf}"].chunk(2)
        found[f"norm_out.linear.{leaf}"] = torch.cat([scale, shift])
    double = {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear",
              "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out",
              "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
              "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2"}  # fmt: skip
    for i in range(len({key.split(".")[1] for key in native if key.startswith("double_blocks")})):
        block, own = f"double_blocks.{i}", f"transformer_blocks.{i}"
        for leaf in LEAVES:
            found |= {f"{own}.{to}.{leaf}": native[f"{block}.{name}.{leaf}"] for name, to in double.items()}
            image, text = (native[f"{block}.{side}_attn.qkv.{leaf}"].chunk(3) for side in ("img", "txt"))
            found |= {f"{own}.attn.to_{each}.{leaf}": value for each, value in zip("qkv", image, strict=True)}
            found |= {
                f"{own}.attn.add_{each}_proj.{leaf}": value for each, value in zip("qkv", text, strict=True)
            }
        for side, added in (("img", ""), ("txt", "added_")):
            for each, short in (("query", "q"), ("key", "k")):
                scale = native[f"{block}.{side}_attn.norm.{each}_norm.scale"]
                found[f"{own}.attn.norm_{added}{short}.weight"] = scale
    for i in range(len({key.split(".")[1] for key in native if key.startswith("single_blocks")})):
        block, own = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        for leaf in LEAVES:
            found[f"{own}.norm.linear.{leaf}"] = native[f"{block}.modulation.lin.{leaf}"]
            found[f"{own}.proj_out.{leaf}"] = native[f"{block}.linear2.{leaf}"]
            width = len(native[f"{block}.linear2.bias"])
            parts = native[f"{block}.linear1.{leaf}"].split([width, width, width, 4 * width])
            for to, value in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts, strict=True):
                found[f"{own}.{to}.{leaf}"] = value
        for each, short in (("query", "q"), ("key", "k")):
            found[f"{own}.attn.norm_{short}.weight"] = native[f"{block}.norm.{each}_norm.scale"]
    return found


def merge_with_config(adapter: Path, checkpoint: Path, folder: Path, output: Path) -> int:
    """What `lorimer merge` does, for a checkpoint whose configs are not those of its family."""
    from lorimer.cli._stored import Merging, picture_files

    files, stored = picture_files(mapping(checkpoint, folder))
    return len(Merging(files, stored, library.read(adapter), 1.0, None, "adapter").write(output).merged)


def test_what_an_adapter_leaves_alone_stays_to_the_bit(
    folders: Callable[[str], Path], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    values, metadata = read_safetensors(checkpoints("sdxl"))
    half = {key: value.half() for key, value in values.items()}
    write_safetensors(half, tmp_path / "half.safetensors", {**metadata, "modelspec.title": "A model"})
    model = load_diffusion(str(folders("sdxl")))
    adapter = save_adapter(model, tmp_path / "adapter.safetensors")
    merge_with_config(
        adapter, tmp_path / "half.safetensors", folders("sdxl"), tmp_path / "merged.safetensors"
    )
    merged, told = read_safetensors(tmp_path / "merged.safetensors")
    before, after = (read_safetensors_header(tmp_path / f"{name}.safetensors") for name in ("half", "merged"))
    assert before.tensors == after.tensors
    adapted = {key for key, value in half.items() if not torch.equal(value, merged[key])}
    assert adapted and not any(".vae." in key or "first_stage" in key or "norm" in key for key in adapted)
    assert told["modelspec.title"] == "A model" and str(tmp_path) not in json.dumps(told)
    assert json.loads(told["lorimer.merged"]) == {"method": "lora", "strength": 1.0}


def test_a_merge_holds_a_few_tensors_at_a_time(tmp_path: Path) -> None:
    from torch import nn

    from lorimer.ops.merge_files import merge_into_files
    from lorimer.ops.stored import StoredModel

    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(64)))
    write_safetensors(model.state_dict(), tmp_path / "base.safetensors")
    adapter = library.attach(model, LoRA(rank=1), "all-linear")
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    state = adapter.state()
    library.detach(model)
    names = {key: (Held(key, tuple(value.shape)),) for key, value in model.state_dict().items()}
    stored = StoredModel("base", model.to("meta"), {tmp_path / "base.safetensors": names})
    outputs = {tmp_path / "base.safetensors": tmp_path / "merged.safetensors"}
    tracemalloc.start()  # tensors are read into Python's own memory
    assert len(merge_into_files(stored, state, outputs).merged) == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (tmp_path / "base.safetensors").stat().st_size / 4


# ---- what does not fit


def test_a_file_of_no_known_family_is_refused(tmp_path: Path) -> None:
    write_safetensors({"something.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match=r"'something.weight'.*Known as single files: .*sdxl"):
        model_files(str(tmp_path / "x.safetensors"))


def test_missing_and_unknown_tensors_are_named(
    folders: Callable[[str], Path], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    values, _ = read_safetensors(checkpoints("sd1"))
    extra = {
        "betas": torch.ones(3),
        "model_ema.decay": torch.ones(1),
        "cond_stage_model.logit_scale": torch.ones(1),
    }
    write_safetensors({**values, **extra}, tmp_path / "known.safetensors")
    model_files(mapping(tmp_path / "known.safetensors", folders("sd1")))
    write_safetensors({**values, "lora_unet_x": torch.ones(1)}, tmp_path / "unknown.safetensors")
    with pytest.raises(FileFormatError, match="lora_unet_x"):
        model_files(mapping(tmp_path / "unknown.safetensors", folders("sd1")))
    lost = "model.diffusion_model.out.2.bias"
    write_safetensors(
        {key: value for key, value in values.items() if key != lost}, tmp_path / "less.safetensors"
    )
    with pytest.raises(FileFormatError, match=lost):
        model_files(mapping(tmp_path / "less.safetensors", folders("sd1")))
    write_safetensors({**values, lost: torch.zeros(7)}, tmp_path / "other.safetensors")
    with pytest.raises(FileFormatError, match=f"{lost}.*7"):
        load_diffusion(mapping(tmp_path / "other.safetensors", folders("sd1")))


def test_parts_that_a_checkpoint_lacks_are_given_beside_it(
    folders: Callable[[str], Path], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    values, _ = read_safetensors(checkpoints("flux"))
    own = {key: value for key, value in values.items() if key.startswith("model.diffusion_model.")}
    write_safetensors(
        {key.removeprefix("model.diffusion_model."): value for key, value in own.items()},
        tmp_path / "flux.safetensors",
    )
    given = mapping(tmp_path / "flux.safetensors", folders("flux"))
    with pytest.raises(
        FileFormatError, match=r"lacks text_encoder, text_encoder_2, vae.*model: \{path: flux"
    ):
        model_files(given)
    vae = {
        key.removeprefix("first_stage_model."): value for key, value in values.items() if "first_stage" in key
    }
    write_safetensors(vae, tmp_path / "ae.safetensors")
    given |= {name: str(folders("flux") / name) for name in ("text_encoder", "text_encoder_2")}
    loaded = load_diffusion({**given, "vae": str(tmp_path / "ae.safetensors")})
    whole = tensors(load_diffusion(str(folders("flux"))))
    assert all(torch.equal(value, whole[key]) for key, value in tensors(loaded).items())
    with pytest.raises(UsageError, match=r"no part of a flux model.*text_encoder_2"):
        load_diffusion({**given, "text_encodr_2": "x"})


def test_a_silent_file_of_stable_diffusion_2_must_be_told_what_it_predicts(tmp_path: Path) -> None:
    keys = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, 1024),
    }
    write_safetensors(keys, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="prediction: v_prediction"):
        model_files(str(tmp_path / "x.safetensors"))


# ---- CLIP's tokenizer


def test_the_vocabulary_is_the_one_of_clip() -> None:
    vocabulary = clip_vocabulary(clip_merges())
    assert len(vocabulary) == 49408
    assert (vocabulary["!"], vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (0, 49406, 49407)
    assert sorted(vocabulary.values()) == list(range(49408))
    tokenizer = MadeTokenizer({"pad_token": "!", "model_max_length": 77}).load(torch.float32)
    ids = tokenizer("A photo of a  CAT", padding="max_length").input_ids
    assert ids[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 0] and len(ids) == 77
