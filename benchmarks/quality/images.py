"""How well pictures are learned: an adapter, training in full, and a frozen network with a linear classifier.

    python examples/images/data.py runs/images
    python -m benchmarks.quality.images stamps --images runs/images
    python -m benchmarks.quality.images fashion --images runs/images

EfficientNet-Lite0 with ImageNet's weights on Tux Paint's photographs (7 labels, five folds, another five
for each seed) or on 5,000 pictures of Fashion-MNIST, judged by its 10,000 others, at 96 px. Each run is a
process of its own, with a thread, two at a time; for seconds one of each contender runs alone with all
threads. Training in full is a plain loop over the same pictures in the same order, with the same loss; the
linear classifier is scikit-learn's, on what the frozen network gives its head. Memory is the resident
high-water mark between the first step and the last, and what of it was not there before.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.speed import _measure as measure
from benchmarks.speed.time_to_quality import run

LORA, FULL, LINEAR = "lorimer, LoRA rank 8", "in full", "frozen, linear classifier"
LATER = [r"re:blocks\.(9|1[0-5])\.(expand|project)", "head.conv"]
TRAIN = {"batch_size": 16, "schedule": "linear", "warmup_steps": 0, "checkpoint_every": 0, "preview_every": 0}
AT_ONCE = 2
STEPS = {"stamps": 56, "fashion": 312}  # four epochs, and one
# Of the rates tried on seed 100; in full on the photographs on folds 0 and 1 of seed 0.
CONTENDERS: dict[str, dict[str, dict[str, Any]]] = {
    "stamps": {LORA: {"rate": 3e-3}, FULL: {"rate": 3e-4, "program": "plain"}},
    "fashion": {LORA: {"rate": 3e-3}, FULL: {"rate": 3e-4, "program": "plain"}},
}


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    asked.steps = asked.steps or STEPS[asked.work]
    folds = list(asked.folds) if asked.work == "stamps" else [0]
    contenders = {
        name: {**options, "rate": dict(asked.rates).get(name, options["rate"])}
        for name, options in CONTENDERS[asked.work].items()
    }
    cases = [(fold, seed) for seed in range(asked.seeds) for fold in folds]
    runs: dict[str, list[dict[str, Any]]] = {LINEAR: [{"accuracy": linear(each, asked)} for each in cases]}
    print(LINEAR, runs[LINEAR], flush=True)

    def one(name: str, fold: int, seed: int, threads: int | None = 1) -> dict[str, Any]:
        options = {**contenders[name], "steps": asked.steps, "every": asked.steps, "seed": seed}
        done = run({"recipe": WORKS[asked.work](asked, fold)}, name, options, threads)
        print(name, fold, seed, done["curve"][-1], flush=True)
        return done

    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked_for = {name: [pool.submit(one, name, *case) for case in cases] for name in contenders}
        runs |= {name: [each.result() for each in of] for name, of in asked_for.items()}
    seconds = {name: one(name, *cases[0], threads=None)["curve"][-1]["seconds"] for name in contenders}
    result = {
        "benchmark": f"images-{asked.work}",
        **measure.conditions(asked.seeds),
        "steps": asked.steps,
        "folds": folds if asked.work == "stamps" else [],
        "rates": {name: options["rate"] for name, options in contenders.items()},
        "contenders": {name: figures(of, seconds.get(name)) for name, of in runs.items()},
    }
    print(report(result))
    print("written to", measure.write(result, asked.results))


def stamps(asked: argparse.Namespace, fold: int) -> dict[str, Any]:
    """The photographs in folders, one of five folds held out."""
    folds = {"folds": 5, "fold": fold}
    return recipe({"path": str(asked.images / "stamps"), "fit": "pad", "validation": folds})


def fashion(asked: argparse.Namespace, fold: int) -> dict[str, Any]:
    """The first 5,000 of Fashion-MNIST's pictures, and all for the test, at 96 px."""
    return recipe(
        {"path": str(asked.images / "fashion"), "max_rows": asked.pictures, "size": 96, "fit": "pad"}
    )


def recipe(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": "image-classification",
        "model": "efficientnet-lite0",
        "data": {**data},
        "adapter": {"rank": 8, "alpha": 16, "targets": LATER},
        "objective": {"label_smoothing": 0.1},
        "train": TRAIN,
    }


def linear(case: tuple[int, int], asked: argparse.Namespace) -> float:
    """The share of the pictures that a fold and seed hold out which a linear classifier on the frozen network
    gets right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from lorimer.tasks._image_models import logits_of
    from lorimer.tasks.image_classification import ImageClassification
    from lorimer.train.recipe import load_recipe

    fold, seed = case
    fixed = ["output=runs/none", f"train.seed={seed}"]
    task = ImageClassification(load_recipe(WORKS[asked.work](asked, fold), fixed, {}))
    model: Any = task.model()
    training = task.data(model)
    model.classifier = torch.nn.Identity()

    @torch.no_grad()
    def seen(examples: Any) -> tuple[Any, list[int]]:
        rows = range(len(examples))
        parts = [task.collate([examples[row] for row in rows[begin : begin + 32]]) for begin in rows[::32]]
        features = torch.cat([logits_of(model, part["pixel_values"]) for part in parts])
        return features.numpy(), torch.cat([part["label"] for part in parts]).tolist()

    learned = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(*seen(training))
    return round(float(learned.score(*seen(task.held_out))), 4)


def figures(runs: Sequence[Mapping[str, Any]], seconds: float | None) -> dict[str, Any]:
    """Of one contender, over its folds and seeds; the seconds are of the run that was alone."""
    if "curve" not in runs[0]:
        return {"accuracy": [each["accuracy"] for each in runs]}
    last = [each["curve"][-1] for each in runs]
    return {
        "accuracy": [round(point["accuracy"], 4) for point in last],
        "loss": [round(point["validation_loss"], 4) for point in last],
        "seconds": seconds,
        "peak_mb": round(measure.median([each["peak_bytes"] for each in runs]) / 1e6),
        "above_mb": round(
            measure.median([each["peak_bytes"] - each["standing_bytes"] for each in runs]) / 1e6
        ),
        "written_mb": round(runs[0]["written"] / 1e6, 2),
    }


def report(result: Mapping[str, Any]) -> str:
    """What was measured, as a Markdown table."""
    rows: list[list[Any]] = []
    for name, found in result["contenders"].items():
        spread = stdev(found["accuracy"]) if found["accuracy"][1:] else 0.0
        more = [found.get(key, "") for key in ("seconds", "peak_mb", "above_mb", "written_mb")]
        loss = f"{mean(found['loss']):.3f}" if "loss" in found else ""
        rows.append([name, f"{mean(found['accuracy']):.1%} ± {spread:.1%}", loss, *more])
    header = ["", "right", "held-out loss", "s", "MB in steps", "of these new", "MB written"]
    return measure.table(header, rows)


WORKS = {"stamps": stamps, "fashion": fashion}


def rate_of(text: str) -> tuple[str, float]:
    """("in full", 0.001) of "in full=0.001"."""
    name, _, rate = text.rpartition("=")
    return name, float(rate)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    described.add_argument("work", choices=WORKS)
    described.add_argument("--images", type=Path, default=Path("runs/images"), help="what data.py wrote")
    described.add_argument("--steps", type=int)
    described.add_argument("--seeds", type=int, default=3)
    described.add_argument("--folds", type=int, nargs="+", default=range(5), help="of the stamps")
    described.add_argument("--pictures", type=int, default=5000, help="of Fashion-MNIST to learn from")
    described.add_argument(
        "--rates", type=rate_of, nargs="+", default=(), help="other learning rates: NAME=RATE"
    )
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    return described


if __name__ == "__main__":
    main()
