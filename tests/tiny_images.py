"""Vision models and labelled pictures so small that a run takes a blink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def picture(seed: int, colour: tuple[int, int, int] = (128, 128, 128), side: int = 40) -> Image.Image:
    """Coarse blocks about a colour: unlike any other seed's, to a perceptual hash, too."""
    noise = np.random.default_rng(seed).normal(0.0, 60.0, (8, 8, 1))
    values = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.NEAREST)


def save_pictures(folder: Path, count: int = 4, labels: tuple[str, ...] = ("blue", "red")) -> Path:
    """A folder for each label with so many pictures of its colour."""
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for place in range(count):
            seed = 100 * number + place
            picture(seed, COLOURS[label], 40 + 4 * place).save(folder / label / f"{place}.png")
    return folder


def save_tiny_vit(folder: Path, **options: Any) -> Path:
    """A ViT of two layers with untrained weights, and its processor, in transformers' layout."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        **{
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "image_size": 32,
            "patch_size": 8,
            "num_labels": 5,
            **options,
        }
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
