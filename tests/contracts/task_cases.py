"""A recipe for every task, so small that training takes a blink. A task without one fails its contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

Values = dict[str, Any]
MakeValues = Callable[[Path], Values]


def module(folder: Path) -> Values:
    here = "tests.unit.train.small"
    return {
        "model": f"{here}:net",
        "data": {
            "dataset": f"{here}:restless_points",
            "validation": f"{here}:points",
            "validation_arguments": {"count": 5},
        },
        "objective": {"loss": f"{here}:noisy_loss"},
        "adapter": {"rank": 2},
    }


def text_to_image(folder: Path) -> Values:
    from PIL import Image

    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for colour in ("red", "green", "blue", "yellow", "black"):
        Image.new("RGB", (32, 32), colour).save(pictures / f"{colour}.png")
        (pictures / f"{colour}.txt").write_text(f"{colour} wall")
    return {
        "model": _tiny_pipeline(),
        "data": {"path": str(pictures), "cache": str(folder / "cache"), "validation": {"fraction": 0.2}},
        "adapter": {"rank": 2, "targets": "attention"},
        "preview": {"steps": 2, "prompts": ["red wall"]},
    }


def concept_slider(folder: Path) -> Values:
    directions = [
        {"target": thing, "positive": f"a red {thing}", "negative": f"a blue {thing}"}
        for thing in ("wall", "ball")
    ]
    return {
        "model": _tiny_pipeline(),
        "data": {"directions": directions},
        "objective": {"drawing_steps": 3},
        "adapter": {"rank": 2, "targets": "attention"},
        "preview": {"steps": 2},
    }


def text_generation(folder: Path) -> Values:
    chats = folder / "chats.jsonl"
    chats.write_text("\n".join(json.dumps({"messages": _chat(number)}) for number in range(8)))
    questions = folder / "questions.jsonl"
    questions.write_text(json.dumps({"prompt": "1 + 1 = ", "choices": ["2", "blue"], "answer": 0}))
    return {
        "model": _tiny_causal(),
        "data": {
            "path": str(chats),
            "validation": {"fraction": 0.25},
            "choices": str(questions),
            "max_length": 100,
        },
        "adapter": {"rank": 2},
        "preview": {"max_tokens": 3},
    }


def _chat(number: int) -> list[dict[str, str]]:
    said = f"{number} and {number}"
    return [
        {"role": "user", "content": said},
        {"role": "assistant", "content": "so be it" * (number % 3 + 1)},
    ]


def text_classification(folder: Path) -> Values:
    table = folder / "reviews.csv"
    rows = [f"{'good' if number % 2 else 'bad'} number {number},{number % 2}" for number in range(10)]
    table.write_text("\n".join(["text,label", *rows]))
    return {
        "model": _tiny_encoder(),
        "data": {"path": str(table), "validation": {"fraction": 0.4}},
        "objective": {"head_start": "linear-probe"},
        "adapter": {"rank": 2},
    }


def image_classification(folder: Path) -> Values:
    from tests.tiny_images import save_pictures

    return {
        "model": _tiny_vit(),
        "data": {
            "path": str(save_pictures(folder / "pictures", count=5)),
            "validation": {"fraction": 0.4},
            "augment": {"flip": True, "crop": 0.5, "colour": 0.2, "rotation": 10},
        },
        "objective": {"mixup": 0.2, "head_start": "linear-probe"},
        "adapter": {"rank": 2},
    }


def object_detection(folder: Path) -> Values:
    from tests.tiny_detectors import shapes

    return {
        "model": _tiny_detector(),
        "data": {"path": str(shapes(folder / "shapes", 6)), "validation": {"fraction": 0.4}},
        "adapter": {"rank": 2},
    }


@cache
def _tiny_vit() -> str:
    from tests.tiny_images import save_tiny_vit

    return str(save_tiny_vit(Path(mkdtemp())))


@cache
def _tiny_detector() -> str:
    from tests.tiny_detectors import save_tiny_detector

    return str(save_tiny_detector(Path(mkdtemp())))


@cache
def _tiny_encoder() -> str:
    from tests.tiny_texts import save_tiny_encoder

    return str(save_tiny_encoder(Path(mkdtemp())))


@cache
def _tiny_causal() -> str:
    from tests.tiny_texts import save_tiny_causal

    return str(save_tiny_causal(Path(mkdtemp())))


@cache
def _tiny_pipeline() -> str:
    from tests.tiny_models import save_tiny_pipeline

    return str(save_tiny_pipeline(Path(mkdtemp())))


CASES: dict[str, MakeValues] = {
    "module": module,
    "text-to-image": text_to_image,
    "concept-slider": concept_slider,
    "text-generation": text_generation,
    "text-classification": text_classification,
    "image-classification": image_classification,
    "object-detection": object_detection,
}
