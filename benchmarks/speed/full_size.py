"""A LoRA run on Stable Diffusion at full size, beside diffusers' own training example for the same work.

    python -m benchmarks.speed.full_size sd1 --example train_text_to_image_lora.py
    python -m benchmarks.speed.full_size sdxl --example train_text_to_image_lora_sdxl.py

The example is diffusers' file (`examples/text_to_image` in its repository), run as it is. Both programs read
the same folder of a model with random weights (made in --work, gigabytes), the same pictures and captions,
and train the same layers at the same rank, batch and precision. Each run is a process of its own; time is
between two updates of the adapter, memory is the resident high-water mark from the first update to the
last, and of the whole process. The rounds alternate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.speed._measure import RESULTS, conditions, ratio, table

PICTURES = 4
RANK = 4
WARM = 1  # intervals between updates that are not counted
SIDES = {"sd1": 512, "sdxl": 256}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # those of diffusers' example


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=SIDES)
    parser.add_argument("--example", type=Path, required=True, help="diffusers' training example")
    parser.add_argument("--work", type=Path, default=Path("runs/full-size"), help="where the model is made")
    parser.add_argument("--resolution", type=int, help="by default 512 for sd1, 256 for sdxl")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    side = asked.resolution or SIDES[asked.family]
    model = random_model(asked.family, asked.work / asked.family)
    pictures = some_pictures(asked.work / "pictures", side)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for number in range(asked.rounds):
        for name in list(found)[:: 1 if number % 2 == 0 else -1]:
            program, asked.checkpointing = CONTENDERS[name]
            with tempfile.TemporaryDirectory(dir=asked.work) as folder:
                command = program(asked, model, pictures, side, Path(folder))
                found[name].append(measured(command, Path(folder), asked.steps))
                print(name, json.dumps(found[name][-1]), flush=True)
    result = {
        "benchmark": f"full_size-{asked.family}",
        **conditions(asked.rounds),
        "work": {
            "family": asked.family,
            "resolution": side,
            "batch_size": asked.batch_size,
            "rank": RANK,
            "precision": "bf16",
            "steps": asked.steps,
        },
        "runs": found,
        "over diffusers": {
            name: {
                each: ratio([run[each] for run in runs], [run[each] for run in found["diffusers"]])
                for each in ("seconds_per_step", "step_peak_bytes", "process_peak_bytes", "seconds_in_all")
            }
            for name, runs in found.items()
            if name != "diffusers"
        },
    }
    place = RESULTS / f"full-size-{asked.family}-{side}.json"
    place.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["over diffusers"], indent=1))


def report(result: Mapping[str, Any]) -> str:
    """What was measured, as a Markdown table: medians over the rounds, ratios within a round."""
    rows = []
    for name, runs in result["runs"].items():
        ratios = result["over diffusers"].get(name, {})
        cells: list[object] = [name]
        for figure, unit in _FIGURES.items():
            own = median(run[figure] for run in runs) / unit
            over = ratios[figure]["median"] if ratios else 1.0
            cells += [f"{own:.1f}", f"{over:.2f}"]
        rows.append(cells)
    names = ("s a step", "GB in steps", "GB in all", "s in all")
    return table(["", *(head for name in names for head in (name, "ratio"))], rows)


_FIGURES = {"seconds_per_step": 1, "step_peak_bytes": 1e9, "process_peak_bytes": 1e9, "seconds_in_all": 1}


def diffusers_command(asked: Any, model: Path, pictures: Path, side: int, folder: Path) -> list[str]:
    """The example with its own options."""
    options = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": pictures,
        "caption_column": "text",
        "resolution": side,
        "train_batch_size": asked.batch_size,
        "max_train_steps": asked.steps,
        "learning_rate": 1e-4,
        "rank": RANK,
        "mixed_precision": "bf16",
        "output_dir": folder / "out",
        "cache_dir": folder / "cache",
        "seed": 0,
    }
    switches = ["--gradient_checkpointing"] if asked.checkpointing else []
    given = [f"--{name}={value}" for name, value in options.items()]
    return [str(asked.example), *given, "--center_crop", *switches]


def lorimer_command(asked: Any, model: Path, pictures: Path, side: int, folder: Path) -> list[str]:
    """`lorimer train` on a recipe of the same work."""
    recipe = {
        "task": "text-to-image",
        "model": str(model),
        "data": {"path": str(pictures), "resolution": side, "cache": str(folder / "cache")},
        "objective": {"caption_dropout": 0.0},
        "adapter": {"rank": RANK, "targets": TARGETS},
        "train": {
            "steps": asked.steps,
            "batch_size": asked.batch_size,
            "learning_rate": 1e-4,
            "weight_decay": 1e-2,
            "mixed_precision": "bf16",
            "gradient_checkpointing": asked.checkpointing,
            "checkpoint_every": 0,
        },
        "output": str(folder / "out"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return ["lorimer", "train", str(folder / "recipe.yaml")]


# name -> program, whether it checkpoints gradients
CONTENDERS = {
    "diffusers": (diffusers_command, False),
    "lorimer": (lorimer_command, False),
    "diffusers, checkpointing": (diffusers_command, True),
    "lorimer, checkpointing": (lorimer_command, True),
}


def measured(command: list[str], folder: Path, steps: int) -> dict[str, Any]:
    """What a run of `command` took; it must have written an adapter."""
    report = folder / "report.json"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    start = time.perf_counter()
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed._timed_updates", str(report), str(steps), *command],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        most = 0
        while running.poll() is None:
            with contextlib.suppress(psutil.Error):
                most = max(most, psutil.Process(running.pid).memory_info().rss)
            time.sleep(0.05)
    seconds = time.perf_counter() - start
    if running.returncode or not list((folder / "out").rglob("*.safetensors")):
        raise SystemExit((folder / "log").read_text()[-3000:])
    told = json.loads(report.read_text())
    return {
        "seconds_per_step": median(told["seconds"][WARM:]),
        "step_peak_bytes": told["step_peak_bytes"],
        "process_peak_bytes": most,
        "seconds_in_all": round(seconds, 1),
    }


def random_model(family: str, folder: Path) -> Path:
    """A folder in diffusers' layout with the true architecture and random weights in bfloat16."""
    if (folder / "model_index.json").is_file():
        return folder
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    script = Path(__file__).with_name("_random_model.py")
    sys.argv = [str(script), family, str(beside)]
    runpy.run_path(str(script), run_name="__main__")
    beside.rename(folder)
    return folder


def some_pictures(folder: Path, side: int) -> Path:
    """A few pictures of smooth colours with captions, in the layout that both programs read."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(PICTURES):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        lines.append(
            json.dumps({"file_name": f"{number}.png", "text": f"a picture of colours, number {number}"})
        )
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
