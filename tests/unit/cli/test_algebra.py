"""`lorimer extract`, `resize`, `compose` and `analyse`: what the library says, in files and for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lorimer as library
from lorimer import LoRA, registry
from lorimer.tasks._diffusion import load_diffusion
from tests.tiny_models import save_tiny_pipeline
from tests.unit.cli.running import lorimer
from tests.unit.ops.adapters import combination, difference, effects, same_bits, trained


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two plain adapters and one whose update needs the model."""
    folder = tmp_path_factory.mktemp("adapters")
    states = [
        trained(LoRA(rank=4, alpha=6.0), 1),
        trained(LoRA(rank=2), 2),
        trained(registry.get("method", "dora")(rank=2), 3, ["linear"]),
    ]
    return [
        library.write(state, folder / f"{number}.safetensors", format="lorimer")
        for number, state in enumerate(states)
    ]


def test_resize(files: list[Path], tmp_path: Path) -> None:
    ran = lorimer("resize", files[0], tmp_path / "small.safetensors", "--rank", 2, "--dtype", "float32")
    assert ran.code == 0 and "relative error" in ran.out
    found = library.read(tmp_path / "small.safetensors")
    assert {layer.rank for layer in found.layers.values()} == {2}
    assert found.layers["linear"].tensors["A"].dtype == torch.float32
    ran = lorimer("resize", files[0], tmp_path / "again.safetensors", "--energy", 0.9, "--json")
    facts = json.loads(ran.out)
    assert facts["format"] == "lorimer" and 0 < facts["error"] <= 0.1**0.5


def test_resize_says_what_it_needs(files: list[Path], tmp_path: Path) -> None:
    for arguments, words in [
        ((files[0], tmp_path / "x.safetensors"), "how much to keep"),
        ((files[2], tmp_path / "x.safetensors", "--rank", 1), "give the base model"),
        ((files[0], files[0], "--rank", 1), "output and source are the same"),
        ((files[0], tmp_path / "x.safetensors", "--rank", 0), "rank must be"),
        ((files[2], tmp_path / "x.safetensors", "--rank", 1, "--model", tmp_path), "not a model's folder"),
    ]:
        ran = lorimer("resize", *arguments)
        assert ran.code == 2 and words in ran.err, ran.err
    assert not (tmp_path / "x.safetensors").exists()


def test_compose(files: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "both.safetensors"
    ran = lorimer("compose", *files[:2], "--output", output, "--weight", 0.5, "--weight", -2)
    assert ran.code == 0 and f"wrote {output}" in ran.out
    wanted = combination([effects(library.read(file)) for file in files[:2]], [0.5, -2.0])
    assert difference(effects(library.read(output)), wanted) <= 1e-9
    ran = lorimer("compose", f"{files[0]}=0.5", f"{files[1]}=-2", "--output", tmp_path / "same.safetensors")
    assert ran.code == 0 and same_bits(library.read(tmp_path / "same.safetensors"), library.read(output))
    lone = tmp_path / "lone.safetensors"
    assert lorimer("compose", files[1], "--output", lone).code == 0
    assert same_bits(library.read(lone), library.read(files[1]))
    ran = lorimer("compose", *files[:2], "--output", output, "--how", "ties", "--rank", 3, "--json")
    assert {layer["rank"] for layer in json.loads(ran.out)["layers"].values()} == {3}


def test_compose_says_what_is_wrong(files: list[Path], tmp_path: Path) -> None:
    for arguments, words in [
        ((*files[:2], "--weight", 1), "one weight"),
        ((f"{files[0]}=much",), "'much' is no weight"),
        ((f"{files[0]}=1", "--weight", 1), "not both"),
        ((*files[:2], "--how", "tie"), "Did you mean 'ties'"),
        ((files[0], files[2]), "give the base model"),
    ]:
        ran = lorimer("compose", *arguments, "--output", tmp_path / "x.safetensors")
        assert ran.code == 2 and words in ran.err, ran.err
    assert lorimer("compose", tmp_path / "none", "--output", tmp_path / "x.safetensors").code == 3


def test_analyse(files: list[Path]) -> None:
    ran = lorimer("analyse", files[0], files[0])
    assert ran.code == 0 and "warning: in 5 layers" in ran.out and "embedding" in ran.out
    facts = json.loads(lorimer("analyse", files[0], "--json").out)
    assert set(facts["layers"]) == {"linear", "conv", "grouped", "transposed", "embedding"}
    assert lorimer("analyse", files[2]).code == 2


def test_extract_of_a_picture_model(tmp_path: Path) -> None:
    """A style merged into the model's folder comes back as a file that the model can be given again."""
    base = save_tiny_pipeline(tmp_path / "base")
    model = load_diffusion(str(base))
    torch.manual_seed(1)
    adapter = library.attach(model, LoRA(rank=2), "re:unet.*to_q")
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    style = library.write(adapter.state(), tmp_path / "style.safetensors", format="lorimer")
    assert lorimer("merge", style, "--model", base, "--output", tmp_path / "tuned").code == 0
    arguments = ("extract", base, tmp_path / "tuned", "--output", tmp_path / "found.safetensors")
    ran = lorimer(*arguments, "--target", "re:unet.*to_[qk]", "--rank", 2)
    assert ran.code == 0, ran.err
    assert "rank 2; relative error" in ran.out and "left out" not in ran.out
    found = library.read(tmp_path / "found.safetensors")
    assert set(found.layers) == set(adapter.layers) and found.components == model.components
    for path, layer in found.layers.items():
        wanted = adapter.state().layers[path]
        change = wanted.scale * wanted.tensors["B"] @ wanted.tensors["A"]
        assert torch.allclose(layer.scale * layer.tensors["B"] @ layer.tensors["A"], change, atol=1e-5)
    assert lorimer(*arguments).code == 2


def test_extract_of_two_checkpoint_files_layer_by_layer(tmp_path: Path) -> None:
    """A file and a folder of the same models compare as two folders do; a part alone can be asked for."""
    base = save_tiny_pipeline(tmp_path / "base")
    model = load_diffusion(str(base))
    torch.manual_seed(1)
    adapter = library.attach(model, LoRA(rank=2), r"re:.*(attn1.to_q|self_attn.q_proj)")
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    style = library.write(adapter.state(), tmp_path / "style.safetensors", format="lorimer")
    merging = ("merge", style, "--model", base, "--output")
    assert lorimer(*merging, tmp_path / "tuned.safetensors").code == 0
    assert lorimer(*merging, tmp_path / "plain.safetensors", "--strength", 0).code == 0
    names = [f"{{path: {tmp_path / name}.safetensors, config: {base}}}" for name in ("plain", "tuned")]
    for number, pair in enumerate([(base, names[1]), names]):
        output = tmp_path / f"found{number}.safetensors"
        ran = lorimer("extract", *pair, "--output", output, "--rank", 2, "--to", "kohya")
        assert ran.code == 0, ran.err
        found = library.read(output)
        assert set(found.layers) == set(adapter.layers) and found.metadata["family"] == "sd1"
        for path, layer in found.layers.items():
            wanted = adapter.state().layers[path]
            change = wanted.scale * wanted.tensors["B"] @ wanted.tensors["A"]
            assert torch.allclose(layer.scale * layer.tensors["B"] @ layer.tensors["A"], change, atol=1e-5)
    output = tmp_path / "part.safetensors"
    ran = lorimer("extract", *names, "--output", output, "--rank", 2, "--component", "text_encoder")
    assert ran.code == 0 and {path.split(".")[0] for path in library.read(output).layers} == {"text_encoder"}
    assert lorimer("extract", *names, "--output", output, "--rank", 2, "--component", "vae").code == 2


def test_extract_of_a_language_model(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(1.0)
        model.model.norm.weight.add_(1.0)
    model.save_pretrained(tmp_path / "tuned")
    ran = lorimer(
        *("extract", tmp_path / "base", tmp_path / "tuned", "--energy", 0.99, "--json"),
        *("--output", tmp_path / "lora", "--to", "peft"),
    )
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert [layer["rank"] for layer in facts["layers"].values()] == [1]
    assert list(facts["left_out"]) == ["model.norm.weight"]
    assert list(library.read(tmp_path / "lora").layers) == ["model.layers.0.mlp.up_proj"]


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """They would be drawn at random, and the difference with them."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlamaConfig(**small, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False)
    LlamaModel(config).save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    told["architectures"] = [LlamaForCausalLM.__name__]
    (tmp_path / "config.json").write_text(json.dumps(told))
    ran = lorimer("extract", tmp_path, tmp_path, "--rank", 1, "--output", tmp_path / "x.safetensors")
    assert ran.code == 3 and "lacks weights such as 'lm_head.weight'" in ran.err


def test_models_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["os"]}')
    ran = lorimer("extract", tmp_path, tmp_path, "--rank", 1, "--output", tmp_path / "x.safetensors")
    assert ran.code == 3 and "names no model of transformers" in ran.err
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    ran = lorimer("extract", tmp_path, tmp_path, "--rank", 1, "--output", tmp_path / "x.safetensors")
    assert ran.code == 3 and "transformers cannot load it" in ran.err
