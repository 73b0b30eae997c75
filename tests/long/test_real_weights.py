"""What the tasks on texts promise, with the real weights of published models. Minutes, not seconds."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import lorimer
from lorimer import LoRA
from lorimer.cli._merged_folder import write_merged_folder
from lorimer.tasks._language_files import load_causal
from lorimer.tasks._packaged_weights import NAMED
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.tolerances import SAME_NETWORK_OUTPUT

EXAMPLES = Path(__file__).parents[2] / "examples"
SENTENCE = "The capital of France is Paris, and the capital of Spain is"


def package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(found.origin).parent


def metrics(run: Path) -> list[dict[str, float]]:
    """Of every evaluation, from before the first step to the end."""
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event["metrics"] for event in events if event["event"] == "evaluation"]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    changes = [
        f"data.path={package('chatterbot_corpus') / 'data' / 'english'}",
        "data.validation.fraction=0.03",
        "train.steps=16",
        "train.evaluate_every=16",
        "train.preview_every=0",
        f"output={folder / 'run'}",
    ]
    return train(load_recipe(EXAMPLES / "chat" / "english.yaml", changes)).folder


def test_a_language_model_learns_small_talk(talk: Path) -> None:
    before, after = metrics(talk)
    assert after["validation_loss"] < 0.65 * before["validation_loss"]


def test_a_merged_language_model_says_the_same(talk: Path, tmp_path: Path) -> None:
    adapter = talk / "adapter" / "adapter.safetensors"
    write_merged_folder(adapter, "smollm2", tmp_path / "merged")
    model, tokenizer = load_causal("smollm2")
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    lorimer.load(model, adapter)
    wanted = model(ids).logits
    merged, _ = load_causal(str(tmp_path / "merged"))
    torch.testing.assert_close(merged(ids).logits, wanted, atol=1e-3, rtol=SAME_NETWORK_OUTPUT)


def test_llama_cpp_changes_its_answer_as_we_do(tmp_path: Path) -> None:
    """The base's weights are quantised there, and so are the inputs of its products: that alone moves logits
    by 2 to 5 %, by the processor. So a change as large as the logits must be ours to a fifth, and far nearer
    to ours than to one of half or twice the strength, as a lost alpha would make it."""
    llama_cpp = pytest.importorskip("llama_cpp")
    name, file = NAMED["smollm2"]
    base = package(name) / file
    model, tokenizer = load_causal("smollm2")
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    adapter = lorimer.attach(model, LoRA(4, alpha=8), "all-linear", exclude=["lm_head"])
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in adapter.named_parameters():
            if key.endswith("B"):
                parameter.normal_(0.0, 0.3)
    config: Any = model.config
    facts = {
        "architecture": config.model_type,
        "attention_heads": str(config.num_attention_heads),
        "key_value_heads": str(config.num_key_value_heads),
    }
    file_of_ours = lorimer.save(adapter, tmp_path / "a.gguf", format="gguf", metadata=facts)

    @torch.no_grad()
    def ours(strength: float) -> torch.Tensor:
        with lorimer.strength(model, strength):
            return model(ids).logits[0]  # type: ignore[no-any-return]

    def theirs(adapter: Path | None) -> torch.Tensor:
        # One token at a time: with more, llama.cpp 0.3.36 crashes on some processors with AMX.
        options = {"logits_all": True, "n_ctx": 32, "n_batch": 1, "n_threads": 1, "verbose": False}
        llama = llama_cpp.Llama(str(base), lora_path=None if adapter is None else str(adapter), **options)
        llama.eval(ids[0].tolist())
        said = torch.tensor(llama.scores[: ids.shape[1]])
        llama.close()
        return said

    change = theirs(file_of_ours) - theirs(None)
    plain = ours(0.0)
    off = {strength: (change - (ours(strength) - plain)).norm() for strength in (0.5, 1.0, 2.0)}
    assert (ours(1.0) - plain).norm() > 0.4 * plain.norm()
    assert off[1.0] < 0.2 * (ours(1.0) - plain).norm()
    assert off[1.0] < 0.4 * min(off[0.5], off[2.0])


def test_an_encoder_learns_opinions(tmp_path: Path) -> None:
    data = runpy.run_path(str(EXAMPLES / "sentiment" / "data.py"))
    try:
        data["main"](tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("the package index cannot be reached")
    changes = [
        f"data.path={tmp_path / 'film' / 'train.csv'}",
        f"data.validation.path={tmp_path / 'film' / 'test.csv'}",
        "train.steps=63",
        f"output={tmp_path / 'run'}",
    ]
    found = metrics(train(load_recipe(EXAMPLES / "sentiment" / "film.yaml", changes)).folder)
    assert found[0]["accuracy"] < 0.6 and found[-1]["accuracy"] > 0.78
