"""How well opinions are learned: an adapter, training in full, and a frozen encoder with a linear classifier.

    python examples/sentiment/data.py runs/opinions
    python -m benchmarks.quality.sentiment --opinions runs/opinions

On the film snippets: 2,000 to learn from and 800 to judge by, two epochs, several seeds, each run a process
of its own. Training in full is by transformers' `Trainer`, in float32. The linear classifier learns from the
mean of the frozen encoder's last states.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.speed import _measure as measure
from benchmarks.speed.time_to_quality import PEFT, run, sentiment

STEPS, EVERY = 126, 63
_NARROW = "train.mixed_precision=bf16"
CONTENDERS: dict[str, dict[str, Any]] = {
    "lorimer, rank 8, bf16": {"rate": 2e-3, "recipe": [_NARROW]},
    "lorimer, rank 8, bf16, no base dropout": {"rate": 2e-3, "recipe": [_NARROW, "train.base_dropout=false"]},
    "lorimer, rank 8, bf16, averaged": {"rate": 2e-3, "recipe": [_NARROW, "train.ema=0.98"]},
    f"{PEFT}, rank 8": {"rate": 2e-3},
    f"{PEFT}: in full": {"rate": 1e-4, "in_full": True},
}


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    work = sentiment(asked)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for seed in range(asked.seeds):
        for name, options in CONTENDERS.items():
            runs[name].append(run(work, name, {**options, "steps": STEPS, "every": EVERY, "seed": seed}))
            print(name, seed, runs[name][-1]["curve"][-1], flush=True)
    result = {
        "benchmark": "sentiment",
        **measure.conditions(asked.seeds),
        "linear": linear(Path(work["recipe"]["data"]["path"]).parent),
        "contenders": {name: figures(of) for name, of in runs.items()},
    }
    print(report(result))
    print("written to", measure.write(result, asked.results))


def figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one contender, over its seeds."""
    last = [each["curve"][-1] for each in runs]
    return {
        "accuracy": [round(point["accuracy"], 4) for point in last],
        "loss": [round(point["validation_loss"], 4) for point in last],
        "seconds": measure.median([point["seconds"] for point in last]),
        "peak_gb": round(measure.median([each["peak_bytes"] for each in runs]) / 1e9, 2),
        "written_mb": round(runs[0]["written"] / 1e6, 2),
    }


def linear(folder: Path) -> float:
    """The share of the test's texts that a linear classifier on the frozen encoder gets right."""
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel

    from lorimer.tasks._language_files import load_pretrained, load_tokenizer

    model: Any = load_pretrained(AutoModel, "minilm")[0]
    tokenizer = load_tokenizer("minilm")

    def seen(name: str) -> tuple[Any, list[str]]:
        with (folder / name).open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        found = []
        for begin in range(0, len(rows), 50):
            texts = [row["text"] for row in rows[begin : begin + 50]]
            batch = tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
            with torch.no_grad():
                states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            found.append((states * mask).sum(1) / mask.sum(1))
        return torch.cat(found).numpy(), [row["label"] for row in rows]

    learned = LogisticRegression(max_iter=1000).fit(*seen("train.csv"))
    return round(float(learned.score(*seen("test.csv"))), 4)


def report(result: Mapping[str, Any]) -> str:
    """What was measured, as a Markdown table."""
    rows: list[list[Any]] = [["frozen, linear classifier", f"{result['linear']:.1%}", "", "", "", ""]]
    for name, found in result["contenders"].items():
        spread = stdev(found["accuracy"]) if found["accuracy"][1:] else 0.0
        rows.append(
            [
                name,
                f"{mean(found['accuracy']):.1%} ± {spread:.1%}",
                f"{mean(found['loss']):.3f}",
                found["seconds"],
                found["peak_gb"],
                found["written_mb"],
            ]
        )
    return measure.table(["", "right", "held-out loss", "s", "GB in steps", "MB written"], rows)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    described.add_argument("--opinions", type=Path, help="the folder that examples/sentiment/data.py wrote")
    described.add_argument("--seeds", type=int, default=3)
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    return described


if __name__ == "__main__":
    main()
