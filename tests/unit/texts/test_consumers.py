"""What a run on texts writes, read by the programs that it is written for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import lorimer
from lorimer.tasks._classifier import Classifier
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.tiny_texts import save_tiny_causal, save_tiny_encoder
from tests.tolerances import SAME_NETWORK_OUTPUT

# peft asks transformers for a name that transformers will rename.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
peft = pytest.importorskip("peft")
IDS = torch.arange(20, 44)[None]


def run(folder: Path, task: str, model: Path, rows: list[dict[str, object]], **adapter: object) -> Path:
    """The folder that a short run writes for other programs."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "task": task,
        "model": str(model),
        "data": {"path": str(folder / "rows.jsonl")},
        "adapter": {"rank": 2, "alpha": 6, **adapter},
        "train": {"steps": 3, "batch_size": 2, "checkpoint_every": 0, "learning_rate": 0.1},
        "output": str(folder / "run"),
    }
    return train(load_recipe(values, [], {})).folder / "adapter"


@pytest.mark.parametrize(
    "adapter", [{}, {"rslora": True}, {"method": "dora"}, {"alpha_pattern": {"q_proj": 1.0}}]
)
def test_peft_reads_a_language_model(adapter: dict[str, object], tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "so?", "completion": "yes"}] * 4
    base = save_tiny_causal(tmp_path / "model")
    written = run(tmp_path, "text-generation", base, rows, **adapter)
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), written / "peft"
    ).eval()
    ours = AutoModelForCausalLM.from_pretrained(base).eval()
    plain = ours(IDS).logits
    lorimer.load(ours, written / "adapter.safetensors")
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, atol=1e-5, rtol=SAME_NETWORK_OUTPUT)
    assert not torch.allclose(plain, ours(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("adapter", [{}, {"method": "dora"}])
def test_peft_reads_a_classifier_with_its_head(adapter: dict[str, object], tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"text {n}", "label": "abc"[n % 3]} for n in range(6)]
    base = save_tiny_encoder(tmp_path / "model")
    written = run(tmp_path, "text-classification", base, rows, **adapter)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(model, written / "peft").eval()
    ours = Classifier.load(written / "adapter.safetensors", str(base)).model
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, atol=1e-5, rtol=SAME_NETWORK_OUTPUT)
