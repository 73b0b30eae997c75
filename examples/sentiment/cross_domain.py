"""One frozen encoder, an adapter and a head for each of four domains, and batches that mix all of them.

    python examples/sentiment/data.py runs/opinions
    python examples/sentiment/cross_domain.py runs/opinions

trains what is not trained yet (runs/domains/<domain>), then shows every adapter texts of every domain, all
adapters in the same batches, and prints how many each gets right.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch

import lorimer
from lorimer.tasks._classifier import Classifier
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe

DOMAINS = ("film", "amazon", "tweets", "nyt")
RECIPE = Path(__file__).parent / "film.yaml"
TEXTS = 8  # in a batch, each shown to every adapter


def main(opinions: Path, runs: Path) -> None:
    adapters = {domain: trained(domain, opinions, runs / domain) for domain in DOMAINS}
    classifier = Classifier.load(adapters[DOMAINS[0]], "minilm")
    model: Any = classifier.model
    lorimer.detach(model)
    for domain, adapter in adapters.items():
        lorimer.load(model, adapter, name=domain)
    table = {domain: shares_right(classifier, opinions / domain / "test.csv") for domain in DOMAINS}
    print("texts of   " + "".join(f"{domain:>10}" for domain in DOMAINS) + "   (adapter)")
    for domain, shares in table.items():
        print(f"{domain:<11}" + "".join(f"{shares[each]:>10.1%}" for each in DOMAINS))
    (runs / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def trained(domain: str, opinions: Path, run: Path) -> Path:
    """The adapter of a domain."""
    adapter = run / "adapter" / "adapter.safetensors"
    if not adapter.is_file():
        files = [
            f"data.path={opinions / domain / 'train.csv'}",
            f"data.validation.path={opinions / domain / 'test.csv'}",
        ]
        train(load_recipe(RECIPE, [*files, f"output={run}"]))
    return adapter


def shares_right(classifier: Classifier, file: Path) -> dict[str, float]:
    """Adapter -> the share of the file's texts that it gets right; every batch holds all adapters."""
    with file.open(encoding="utf-8", newline="") as opened:
        rows = sorted(csv.DictReader(opened), key=lambda row: len(row["text"]))
    right = dict.fromkeys(DOMAINS, 0)
    for begin in range(0, len(rows), TEXTS):
        some = rows[begin : begin + TEXTS]
        texts = [row["text"] for row in some for _ in DOMAINS]
        batch = classifier.tokenizer(
            texts, truncation=True, max_length=64, padding=True, return_tensors="pt"
        ).to(next(classifier.model.parameters()).device)
        with torch.no_grad(), lorimer.rows(classifier.model, list(DOMAINS) * len(some)):
            said = classifier.model(**batch).logits.argmax(1).tolist()
        for place, answer in enumerate(said):
            right[DOMAINS[place % len(DOMAINS)]] += (
                classifier.labels[answer] == some[place // len(DOMAINS)]["label"]
            )
    return {domain: count / len(rows) for domain, count in right.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path("runs/domains"))
