"""Detectors of transformers so small that a step takes a blink, and pictures of coloured shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIDE = 64
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230)}


def save_tiny_detector(folder: Path, kind: str = "yolos", names: tuple[str, ...] = ("red", "green")) -> Path:
    """A random detector of a kind, with its image processor, in a folder."""
    import transformers

    torch.manual_seed(0)
    config, processor = _KINDS[kind]()
    config.id2label = dict(enumerate(names))
    config.label2id = {name: place for place, name in enumerate(names)}
    transformers.AutoModelForObjectDetection.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _yolos() -> tuple[Any, Any]:
    from transformers import YolosConfig, YolosImageProcessorPil

    config = YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[SIDE, SIDE],
        patch_size=8,
        num_detection_tokens=8,
    )
    return config, YolosImageProcessorPil(size={"shortest_edge": SIDE, "longest_edge": SIDE})


_KINDS = {"yolos": _yolos}
