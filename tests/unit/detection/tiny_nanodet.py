"""A NanoDet so small that a step takes milliseconds, and a picture for it."""

from __future__ import annotations

from pathlib import Path

import torch

from lorimer.models.nanodet import NanoDet, NanoDetConfig
from lorimer.tasks._nanodet_files import write_nanodet

CONFIG = NanoDetConfig(
    ("cat", "dog", "cup"),
    input_size=64,
    stem_channels=4,
    residual_blocks=(1, 1, 1, 1),
    neck_channels=8,
    bins=5,
)


def tiny_nanodet(folder: Path, config: NanoDetConfig = CONFIG) -> Path:
    """A folder with a random network."""
    torch.manual_seed(0)
    write_nanodet(NanoDet(config), config, folder)
    return folder
