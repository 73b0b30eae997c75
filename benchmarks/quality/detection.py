"""How well a NanoDet with COCO's weights learns classes it never saw, and what it still knows of COCO.

    apt-get download tuxpaint-stamps-default opencv-doc mate-backgrounds lomiri-wallpapers-16.04
    for each in *.deb; do dpkg-deb -x $each unpacked; done
    python scripts/nanodet_weights.py package/models/nanodet.json nanodet      # see there
    python -m benchmarks.quality.detection --unpacked unpacked --nanodet nanodet --work WORK

Learned are composites of cut-outs on photographs (`_composites.py`); judged are others, of other cut-outs on
other photographs. What is known of COCO is judged on plain photographs by the base's own boxes there that
are surer than 0.3: the base agrees with itself by 1, also under the trained adapter at strength 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from benchmarks.quality import _composites as composites
from benchmarks.speed import _measure as measure
from lorimer.tasks._box_maths import clip
from lorimer.tasks._nanodet import NanoDetDetector, load_nanodet
from lorimer.tasks._trained_detector import TrainedDetector

_SURE = 0.3
_EARLY = [
    "backbone.stem",
    "backbone.stages.0",
    "backbone.stages.1",
]  # edges and textures, which all things have
_LONGEST = 800  # pixels of a plain photograph's longer side


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    train, test = (
        composites.make(asked.work / name, asked.unpacked, count, name == "test", seed)
        for seed, (name, count) in enumerate({"train": asked.pictures, "test": asked.test_pictures}.items())
    )
    base = load_nanodet(asked.nanodet, (), keep_old=False)
    known, photographs = write_known(asked.work / "known", asked.unpacked, base)
    recipe = recipe_of(asked, train, test, known)
    began = time.perf_counter()
    events = trained(recipe, asked.work)
    seconds = time.perf_counter() - began
    run = Path(recipe["output"])
    adapter = run / "adapter" / "adapter.safetensors"
    result = {
        "benchmark": "detection",
        **measure.conditions(1),
        "recipe": {key: recipe[key] for key in ("adapter", "train")},
        "pictures": {"train": asked.pictures, "test": asked.test_pictures, "plain": len(photographs)},
        "curve": [
            {"step": each["step"], **each["metrics"]} for each in events if each["event"] == "evaluation"
        ],
        "seconds": round(seconds),
        "written_mb": round(adapter.stat().st_size / 1e6, 2),
        "classes": max((run / "samples").rglob("classes-*.csv")).read_text(encoding="utf-8"),
        "strength_0_differs_by": difference_at_0(adapter, asked.nanodet, base, photographs),
    }
    print(report(result))
    print("written to", measure.write(result, asked.results))


def write_known(folder: Path, root: Path, base: NanoDetDetector) -> tuple[Path, list[Image.Image]]:
    """COCO JSON of plain photographs with the base's own boxes, and the photographs."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    photographs = []
    for number, path in enumerate(composites.plain_photographs(root)):
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((_LONGEST, _LONGEST))
        name = f"pictures/{number:04d}.png"
        picture.save(folder / name)
        photographs.append(picture)
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        seen = base.prepare(picture)
        (found,) = base.find(base.network, seen.pixels[None], _SURE)
        boxes = clip(seen.back(found.boxes), *picture.size)
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), found.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(base.names)]
    path = folder / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8"
    )
    return path, photographs


def recipe_of(asked: argparse.Namespace, train: Path, test: Path, known: Path) -> dict[str, Any]:
    """What `lorimer train` is asked."""
    return {
        "task": "object-detection",
        "model": str(asked.nanodet),
        "data": {
            "path": str(train),
            "keep_classes": True,
            "validation": {"path": str(test)},
            "also_knows": str(known),
        },
        "adapter": {
            "rank": asked.rank,
            "alpha": asked.rank,
            "targets": "all-linear-conv",
            "exclude": asked.exclude,
        },
        "train": {
            "steps": asked.steps,
            "batch_size": 8,
            "learning_rate": asked.rate,
            "schedule": "cosine",
            "warmup_steps": 10,
            "evaluate_every": asked.steps // 2,
            "preview_every": asked.steps,
            "checkpoint_every": 0,
            "seed": asked.seed,
        },
        "output": str(asked.work / "run"),
    }


def trained(recipe: Mapping[str, Any], work: Path) -> list[dict[str, Any]]:
    """The events of a run of `lorimer train`."""
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "lorimer", "train", str(path)], check=True)
    lines = (Path(recipe["output"]) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def difference_at_0(
    adapter: Path, nanodet: Path, base: NanoDetDetector, photographs: Sequence[Image.Image]
) -> float:
    """The largest difference that the trained adapter at strength 0 makes to any score of COCO or box."""
    taught = TrainedDetector.load(adapter, str(nanodet), strength=0.0)
    largest = 0.0
    for picture in photographs:
        pixels = base.prepare(picture).pixels[None]
        with torch.no_grad():
            before, after = base.network(pixels), taught.model(pixels)
        for one, other in zip(before, (after[0][..., : len(base.names)], after[1]), strict=True):
            largest = max(largest, (one - other).abs().max().item())
    return largest


def report(result: Mapping[str, Any]) -> str:
    """What was measured, as Markdown tables."""
    rows = [
        [each["step"], *(f"{each[name]:.3f}" for name in ("map50", "map", "known_map50"))]
        for each in result["curve"]
    ]
    told = f"{result['seconds']} s, {result['written_mb']} MB written, "
    told += f"strength 0 differs by {result['strength_0_differs_by']:.1e}"
    header, *classes = csv.reader(result["classes"].splitlines())
    header = [name.replace("_", " ") for name in header]
    curve = measure.table(["step", "mAP50", "mAP", "COCO, mAP50"], rows)
    return "\n\n".join([curve, told, measure.table(header, classes)])


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    described.add_argument("--unpacked", type=Path, required=True, help="where the Debian packages lie")
    described.add_argument("--nanodet", type=Path, required=True)
    described.add_argument("--work", type=Path, required=True)
    described.add_argument("--pictures", type=int, default=960)
    described.add_argument("--test-pictures", type=int, default=80)
    described.add_argument("--steps", type=int, default=310)
    described.add_argument("--rank", type=int, default=16)
    described.add_argument("--rate", type=float, default=2e-3)
    described.add_argument("--seed", type=int, default=0)
    described.add_argument("--exclude", nargs="*", default=_EARLY, help="layers that are not adapted")
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    return described


if __name__ == "__main__":
    main()
