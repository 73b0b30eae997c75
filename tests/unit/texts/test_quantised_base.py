"""QLoRA on texts: the base in 4 or 8 bits, its heads as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import lorimer
from lorimer.tasks._classifier import Classifier
from lorimer.train.engine import check, train
from lorimer.train.recipe import Recipe, load_recipe
from tests.tiny_texts import save_tiny_causal, save_tiny_encoder

WIDE = {"hidden_size": 128, "intermediate_size": 128, "num_key_value_heads": 4}
ROWS: dict[str, list[dict[str, object]]] = {
    "text-generation": [{"prompt": "so?", "completion": "yes"}] * 4,
    "text-classification": [{"text": "yes " * (1 + n % 2), "label": "ab"[n % 2]} for n in range(8)],
}


def recipe(folder: Path, task: str, precision: str, **train: object) -> Recipe:
    data = folder / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS[task])))
    save = save_tiny_causal if task == "text-generation" else save_tiny_encoder
    model = save(folder / "model", tie_word_embeddings=False, **WIDE)
    values = {
        "task": task,
        "model": str(model),
        "data": {"path": str(data), "validation": {"path": str(data)}},
        "adapter": {"rank": 2},
        "train": {"steps": 12, "batch_size": 4, "checkpoint_every": 0, "learning_rate": 0.02, **train}
        | {"base_precision": precision, "evaluate_every": 12},
        "output": str(folder / "run"),
    }
    return load_recipe(values, [], {})


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("precision", ["nf4", "8bit"])
@pytest.mark.parametrize("more", [{}, {"mixed_precision": "bf16", "gradient_checkpointing": True}])
def test_a_run_learns_beside_a_quantised_base(
    tmp_path: Path, task: str, precision: str, more: dict[str, object]
) -> None:
    run = recipe(tmp_path, task, precision, **more)
    lines = "\n".join(check(run).lines())
    assert f"kept in {precision}" in lines and "weights are off by" in lines
    events = (train(run).folder / "events.jsonl").read_text().splitlines()
    losses = [row["metrics"]["validation_loss"] for row in map(json.loads, events) if "metrics" in row]
    assert losses[-1] < 0.8 * losses[0]


def test_what_was_trained_beside_a_quantised_base_fits_the_plain_one(tmp_path: Path) -> None:
    adapter = train(recipe(tmp_path, "text-generation", "nf4")).adapter
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plain = model(torch.arange(9)[None]).logits
    lorimer.load(model, adapter)
    assert not torch.allclose(model(torch.arange(9)[None]).logits, plain, atol=1e-2)


def test_a_classifier_trained_beside_a_quantised_base_still_knows(tmp_path: Path) -> None:
    run = recipe(tmp_path, "text-classification", "8bit")
    told = Classifier.load(train(run).adapter, str(tmp_path / "model")).predict(["yes ", "yes yes "])
    assert [each["labels"] for each in told] == [["a"], ["b"]]
