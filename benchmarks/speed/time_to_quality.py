"""How long until a held-out loss is reached: lorimer, and PEFT in `Trainer`, on the same tokens.

    python -m benchmarks.speed.time_to_quality chat
    python -m benchmarks.speed.time_to_quality sentiment --opinions WORK     # of examples/sentiment/data.py

First each program tries the same learning rates. The goal is within 2 % of the lowest held-out loss that the
Trainer reaches at its best rate. Then all contenders run in turn, each run a process of its own; quoted are
seconds of training until the goal (between two evaluations along a line; evaluations are not counted), and
the resident high-water mark between the first step and the last. Further contenders have one thing of
lorimer's changed each, and tell what it brings.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed import _measure as measure

PEFT, LORIMER = "PEFT + Trainer", "lorimer"
RATES = (1e-3, 2e-3, 4e-3)
NEAR = 1.02  # a run with other threads ends a little elsewhere
NARROW = {"trainer": {"bf16": True}}


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    work = WORKS[asked.work](asked)
    steps, every = asked.steps or work["steps"], work["every"]
    tuned = tune(work, steps, every, asked.rates)
    rates = {program: min(tuned[program], key=lambda rate: tuned[program][rate]) for program in tuned}
    goal = NEAR * tuned[PEFT][rates[PEFT]]
    chosen = {name: work["contenders"][name] for name in asked.only or work["contenders"]}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for number in range(asked.rounds):
        for name in list(chosen)[:: 1 if number % 2 == 0 else -1]:
            rate = rates[PEFT if name.startswith(PEFT) else LORIMER] * chosen[name].get("rate_factor", 1.0)
            runs[name].append(run(work, name, {**chosen[name], "rate": rate, "steps": steps, "every": every}))
            print(f"{name}, round {number + 1}: {until(runs[name][-1]['curve'], goal)} s", flush=True)
    result = {
        "benchmark": f"time_to_quality-{asked.work}",
        **measure.conditions(asked.rounds),
        "goal": goal,
        "tuned": {program: {f"{rate:g}": loss for rate, loss in of.items()} for program, of in tuned.items()},
        "contenders": {name: figures(runs[name], runs, goal) for name in chosen},
        "curves": {name: of[0]["curve"] for name, of in runs.items()},
    }
    print(report(result))
    print("written to", measure.write(result, asked.results))


def tune(
    work: Mapping[str, Any], steps: int, every: int, rates: Sequence[float]
) -> dict[str, dict[float, float]]:
    """Program -> learning rate -> the lowest held-out loss. Two at a time, a thread each; untimed."""
    tried = [(program, rate) for rate in rates for program in (PEFT, LORIMER)]

    def lowest(what: tuple[str, float]) -> float:
        program, rate = what
        options = {**work["contenders"][program], "rate": rate, "steps": steps, "every": every}
        found = run(work, program, options, threads=1)["curve"]
        loss = min(point["validation_loss"] for point in found)
        print(f"{program} at {rate:g}: {loss:.4f}", flush=True)
        return float(loss)

    with ThreadPoolExecutor(2) as pool:
        losses = dict(zip(tried, pool.map(lowest, tried), strict=True))
    return {program: {rate: losses[program, rate] for rate in rates} for program in (PEFT, LORIMER)}


def run(
    work: Mapping[str, Any], name: str, options: Mapping[str, Any], threads: int | None = None
) -> dict[str, Any]:
    """One training in a process of its own."""
    asked = {
        "work": {key: work[key] for key in ("recipe", "trainer_batch") if key in work},
        "program": options.get("program") or ("trainer" if name.startswith(PEFT) else "lorimer"),
        "options": options,
    }
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.speed._one_training", json.dumps(asked)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def until(curve: Sequence[Mapping[str, float]], goal: float) -> float | None:
    """Seconds until the loss is `goal`, along a line between evaluations; None where it never is."""
    for before, after in itertools.pairwise(curve):
        if after["validation_loss"] <= goal:
            fallen = before["validation_loss"] - after["validation_loss"]
            share = (before["validation_loss"] - goal) / fallen
            return round(before["seconds"] + share * (after["seconds"] - before["seconds"]), 1)
    return None


def figures(
    own: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[Mapping[str, Any]]], goal: float
) -> dict[str, Any]:
    """Of one contender, medians and ratios to PEFT's runs of the same rounds."""
    seconds = [until(each["curve"], goal) for each in own]
    theirs = [until(each["curve"], goal) for each in runs[PEFT]]
    both = [(ours, their) for ours, their in zip(seconds, theirs, strict=True) if ours and their]
    last = [each["curve"][-1] for each in own]
    return {
        "seconds": median([each for each in seconds if each]) if any(seconds) else None,
        "over_peft": measure.ratio(*zip(*both, strict=True)) if both else None,
        "seconds_a_step": round(median(point["seconds"] / point["step"] for point in last), 2),
        "startup": median(each["startup"] for each in own),
        "peak_gb": round(median(each["peak_bytes"] for each in own) / 1e9, 2),
        "peak_over_peft": measure.ratio(
            [each["peak_bytes"] for each in own], [each["peak_bytes"] for each in runs[PEFT]]
        ),
        "lowest": round(median(min(p["validation_loss"] for p in each["curve"]) for each in own), 4),
        "accuracy": round(median(point["accuracy"] for point in last), 4) if "accuracy" in last[0] else None,
    }


def report(result: Mapping[str, Any]) -> str:
    """What was measured, as a Markdown table."""
    header = [
        "",
        "s to the goal",
        "over PEFT",
        "s a step",
        "start, s",
        "GB in steps",
        "over PEFT",
        "lowest loss",
    ]
    rows = []
    for name, found in result["contenders"].items():
        rows.append(
            [
                name,
                found["seconds"] or "never",
                measure.shown(found["over_peft"]),
                found["seconds_a_step"],
                f"{found['startup']:.0f}",
                found["peak_gb"],
                f"{found['peak_over_peft']['median']:.2f}",
                f"{found['lowest']:.3f}",
            ]
        )
    tuned = "; ".join(
        f"{program}: " + ", ".join(f"{rate} {loss:.3f}" for rate, loss in of.items())
        for program, of in result["tuned"].items()
    )
    table = measure.table(header, rows)
    return f"{table}\n\nGoal: a held-out loss of {result['goal']:.3f}. Lowest by learning rate: {tuned}."


def chat(asked: argparse.Namespace) -> dict[str, Any]:
    """SmolLM2-135M and the English conversations of chatterbot-corpus."""
    found = importlib.util.find_spec("chatterbot_corpus")
    if found is None or found.origin is None:
        raise SystemExit('needs the package chatterbot-corpus: pip install -e ".[benchmarks]"')
    recipe = {
        "task": "text-generation",
        "model": "smollm2",
        "data": {
            "path": str(Path(found.origin).parent / "data" / "english"),
            "validation": {"fraction": 0.03},
            "max_length": 256,
        },
        "adapter": {"rank": 8, "alpha": 8, "targets": "all-linear"},
        "train": {"batch_size": 4, "schedule": "linear", "checkpoint_every": 0, "preview_every": 0},
    }
    contenders = {
        PEFT: {},
        f"{PEFT}, bf16": NARROW,
        LORIMER: {},
        "lorimer, bf16": {"recipe": ["train.mixed_precision=bf16"]},
        "lorimer, bf16, int8": {"recipe": ["train.mixed_precision=bf16", "train.base_precision=int8"]},
        "lorimer, bf16, LoRA+": {"recipe": ["train.mixed_precision=bf16", "train.fast_ratio=4"]},
        "lorimer, bf16, PiSSA": {"recipe": ["train.mixed_precision=bf16", "adapter.start=pissa"]},
        "lorimer, bf16, batches of like lengths": {
            "recipe": ["train.mixed_precision=bf16", "data.packing=false", "train.batch_size=16"]
        },
        "lorimer, bf16, whole logits": {"recipe": ["train.mixed_precision=bf16"], "whole_logits": True},
    }
    # 16 conversations of the Trainer hold about as many learned tokens as 4 packed rows.
    return {"recipe": recipe, "trainer_batch": 16, "steps": 24, "every": 3, "contenders": contenders}


def sentiment(asked: argparse.Namespace) -> dict[str, Any]:
    """MiniLM and the film snippets."""
    folder = (asked.opinions or Path("runs/opinions")).resolve() / "film"
    if not (folder / "train.csv").is_file():
        raise SystemExit(f"{folder} has no train.csv: python examples/sentiment/data.py {folder.parent}")
    recipe = {
        "task": "text-classification",
        "model": "minilm",
        "data": {
            "path": str(folder / "train.csv"),
            "validation": {"path": str(folder / "test.csv")},
            "max_length": 64,
        },
        "adapter": {"rank": 8, "alpha": 16},
        "train": {"batch_size": 32, "schedule": "linear", "checkpoint_every": 0, "preview_every": 0},
    }
    still = "train.base_dropout=false"
    contenders = {
        PEFT: {},
        f"{PEFT}, bf16": NARROW,
        LORIMER: {},
        "lorimer, padded": {"padded": True},
        "lorimer, no base dropout": {"recipe": [still]},
        "lorimer, no base dropout, LoRA+": {"recipe": [still, "train.fast_ratio=4"]},
        "lorimer, no base dropout, PiSSA": {"recipe": [still, "adapter.start=pissa"]},
        "lorimer, no base dropout, int8": {"recipe": [still, "train.base_precision=int8"]},
        "lorimer, no base dropout, bf16": {"recipe": [still, "train.mixed_precision=bf16"]},
    }
    return {"recipe": recipe, "trainer_batch": 32, "steps": 126, "every": 14, "contenders": contenders}


WORKS = {"chat": chat, "sentiment": sentiment}


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    described.add_argument("work", choices=WORKS)
    described.add_argument("--opinions", type=Path, help="the folder that examples/sentiment/data.py wrote")
    described.add_argument("--rates", type=float, nargs="+", default=RATES)
    described.add_argument("--steps", type=int)
    described.add_argument("--rounds", type=int, default=2)
    described.add_argument("--only", nargs="+", help="contenders; all by default")
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    return described


if __name__ == "__main__":
    main()
