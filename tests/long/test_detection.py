"""Detectors of transformers learn from nothing to find coloured shapes, and by LoRA a colour that they never
saw, beside those that they know."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lorimer.tasks._box_check import checked, class_names
from lorimer.tasks._box_examples import BoxExamples
from lorimer.tasks._box_scores import average_precision
from lorimer.tasks._boxes import read_boxes
from lorimer.tasks._detector import Detector, Truth
from lorimer.tasks._detectors import load_detector
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.tiny_detectors import SIDE, save_tiny_detector, shapes

KNOWN = ("red", "green")


def examples(folder: Path, detector: Detector, count: int, seed: int) -> list[dict[str, Any]]:
    written = read_boxes(str(shapes(folder / f"shapes-{seed}", count, KNOWN, seed)))
    found = checked(written, class_names(written, ()), False, None)
    data = BoxExamples(found.pictures, detector)
    return [data[place] for place in range(count)]


def truths(some: Sequence[dict[str, Any]]) -> list[Truth]:
    return [Truth(each["boxes"], each["labels"]) for each in some]


def stacked(some: Sequence[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([each["pixels"] for each in some])


def learn_from_nothing(
    detector: Detector, data: Sequence[dict[str, Any]], steps: int, rate: float
) -> list[float]:
    """Training in full, the plain way; the losses."""
    network, losses = detector.network, []
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for _ in range(steps):
        some = [data[place] for place in torch.randint(len(data), (16,)).tolist()]
        loss = detector.loss(network, stacked(some), truths(some))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    network.eval()
    return losses


def base(kind: str, folder: Path, steps: int, rate: float) -> tuple[Path, float, list[float]]:
    """(the folder of a detector of red and green, its mAP50 on held-out pictures, the losses)."""
    torch.manual_seed(0)
    detector = load_detector(str(save_tiny_detector(folder / "random", kind, KNOWN)), KNOWN, False)
    detector.fit_to([(SIDE, SIDE)])
    held_out = examples(folder, detector, 48, 1)
    before = average_precision(truths(held_out), detector.find(detector.network, stacked(held_out)), KNOWN)
    losses = learn_from_nothing(detector, examples(folder, detector, 192, 0), steps, rate)
    after = average_precision(truths(held_out), detector.find(detector.network, stacked(held_out)), KNOWN)
    assert before.map50 < 0.05
    detector.network.save_pretrained(folder / "trained")
    detector.processor.save_pretrained(folder / "trained")
    return folder / "trained", after.map50, losses


@pytest.mark.parametrize(("kind", "steps", "rate", "least"), [("yolos", 300, 1e-3, 0.15)])
def test_learns_from_nothing(kind: str, steps: int, rate: float, least: float, tmp_path: Path) -> None:
    _, map50, losses = base(kind, tmp_path, steps, rate)
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20]) and map50 > least


def test_learns_a_new_class_beside_those_it_learned_before(tmp_path: Path) -> None:
    trained, map50, losses = base("rt-detr", tmp_path, 200, 2e-3)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20]) and map50 > 0.5
    recipe = {
        "task": "object-detection",
        "preset": "keep-classes",
        "model": str(trained),
        "data": {
            "path": str(shapes(tmp_path / "new", 96, ("blue",), 2)),
            "validation": {"path": str(shapes(tmp_path / "held-out", 24, ("blue",), 3))},
            "also_knows": str(tmp_path / "shapes-1"),
        },
        "train": {"steps": 100, "learning_rate": 2e-3, "evaluate_every": 100, "preview_every": 100},
        "output": str(tmp_path / "run"),
    }
    result = train(load_recipe(recipe, (), {}))
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    before, after = (each["metrics"] for each in events if each["event"] == "evaluation")
    # What is common to red and green finds some of the blue ones at once.
    assert after["map50"] > before["map50"] + 0.1
    assert before["known_map50"] > 0.5 and after["known_map50"] > before["known_map50"] - 0.1
    with (result.folder / "samples" / "classes-000100.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["blue"]
