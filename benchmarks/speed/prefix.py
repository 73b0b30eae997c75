"""An epoch of a picture classifier whose last third is adapted: what the rest gives stored, or computed anew.

    python examples/images/data.py WORK
    python -m benchmarks.speed.prefix WORK/stamps

An epoch is what a run does: pictures are read and decoded, every step is taken, held-out pictures are
judged. Both take the same steps, in turn; in the end their adapters must be equal to the bit. Filling the
store, which happens once, is told apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import _measure as measure
from lorimer.train.order import read_batches
from lorimer.train.preflight import inspect
from lorimer.train.recipe import load_recipe
from lorimer.train.setup import Setup, build
from lorimer.train.step import take_step


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = work
        rows = []
        for name in options.models:
            model, targets = MODELS[name](Path(work))
            rows.append({"model": name, **compared(model, targets, options, Path(work))})
    result = {"benchmark": "prefix", **measure.conditions(options.rounds), "rows": rows}
    print(report(result))
    print(measure.write(result, options.output))


def efficientnet(work: Path) -> tuple[str, list[str]]:
    """Real weights; its last 5 of 16 blocks."""
    return "efficientnet-lite0", [
        f"blocks.{block}.{layer}" for block in range(11, 16) for layer in ("expand", "depthwise", "project")
    ]


def vit(work: Path) -> tuple[str, list[str]]:
    """The shape of ViT-Tiny (arXiv 2012.12877, table 1) with random weights; its last 4 of 12 blocks."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    network = ViTForImageClassification(ViTConfig(**sizes))
    network.save_pretrained(work / "vit")
    ViTImageProcessorPil().save_pretrained(work / "vit")
    return str(work / "vit"), [
        name
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and any(f"layers.{block}." in name for block in range(8, 12))
    ]


MODELS: dict[str, Callable[[Path], tuple[str, list[str]]]] = {
    "efficientnet-lite0": efficientnet,
    "vit-tiny": vit,
}


def compared(model: str, targets: list[str], options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Seconds of an epoch without and with the store, and what it takes."""
    setups = {
        name: prepared(model, targets, name, options, work / f"{Path(model).name}-{name}")
        for name in ("never", "always")
    }
    kept = setups["always"].prefix
    assert kept is not None
    print(kept.note)
    before = stored_bytes(work)
    filling = measure.timed(lambda: kept.fill(print))
    stored = stored_bytes(work) - before
    steps = dict.fromkeys(setups, 0)
    seconds = measure.interleave(
        {name: partial(epoch, setup, steps, name) for name, setup in setups.items()}, options.rounds
    )
    tensors = [dict(setup.adapter.named_parameters()) for setup in setups.values()]
    return {
        "without_seconds": measure.median(seconds["never"]),
        "with_seconds": measure.median(seconds["always"]),
        "ratio": measure.ratio(seconds["never"], seconds["always"]),
        "filling_seconds": float(f"{filling:.3g}"),
        "stored_bytes": stored,
        "equal_to_the_bit": all(torch.equal(each, tensors[1][name]) for name, each in tensors[0].items()),
    }


def stored_bytes(work: Path) -> int:
    """What is kept in the store now."""
    return sum(file.stat().st_size for file in work.rglob("prefix/**/*.safetensors"))


def prepared(model: str, targets: list[str], wish: str, options: argparse.Namespace, output: Path) -> Setup:
    values: dict[str, Any] = {
        "task": "image-classification",
        "model": model,
        "data": {"path": str(options.pictures), "validation": {"fraction": 0.2}},
        "adapter": {"rank": 8, "alpha": 16, "targets": targets},
        "train": {"steps": 1000, "batch_size": options.batch_size, "cache_prefix": wish},
        "output": str(output),
    }
    setup = build(load_recipe(values, [], {}))
    inspect(setup)
    return setup


def epoch(setup: Setup, steps: dict[str, int], name: str) -> float:
    """Seconds of the next epoch."""

    def work() -> None:
        first = steps[name]
        steps[name] = first + setup.order.steps_per_epoch
        setup.set_training()
        batches = read_batches(setup, first, steps[name])
        for step in range(first, steps[name]):
            take_step(setup, step, batches)
        setup.model.eval()
        with torch.no_grad():
            setup.task.evaluate(setup.model)

    return measure.timed(work)


def report(result: Mapping[str, Any]) -> str:
    """The result as a table."""
    header = (
        "model",
        "s an epoch",
        "with the store",
        "times as quick",
        "filling",
        "on disk",
        "equal to the bit",
    )
    return measure.table(
        header,
        [
            (
                row["model"],
                f"{row['without_seconds']:.1f}",
                f"{row['with_seconds']:.1f}",
                measure.shown(row["ratio"]),
                f"{row['filling_seconds']:.0f} s",
                f"{row['stored_bytes'] / 1e6:.0f} MB",
                "yes" if row["equal_to_the_bit"] else "no",
            )
            for row in result["rows"]
        ],
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("pictures", type=Path, help="a folder with a folder of pictures for each label")
    made.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--output", type=Path, default=measure.RESULTS)
    return made


if __name__ == "__main__":
    main()
