"""The trained adapter, in the formats that lorimer and other programs load."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

import lorimer
from lorimer.errors import FileFormatError
from lorimer.train.run_folder import RunFolder
from lorimer.train.setup import Setup

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export(setup: Setup, folder: RunFolder, steps: int) -> list[Path]:
    """Write `adapter/adapter.safetensors`, and beside it what other programs read: one kohya file for a
    picture model, a PEFT folder for a plain one where that format can hold the adapter. Returns the paths.
    """
    metadata = {
        "title": setup.recipe.name,
        "steps": str(steps),
        "seed": str(setup.recipe.train.seed),
        **setup.task.metadata(),
    }
    own = folder.adapter / "adapter.safetensors"
    precision = _PRECISIONS[setup.recipe.train.save_precision]
    written = [lorimer.save(setup.adapter, own, format="lorimer", metadata=metadata)]
    if getattr(setup.model, "components", ()):
        name = f"{setup.recipe.name}.safetensors"
        other, format = folder.adapter / (name if name != own.name else f"kohya-{name}"), "kohya"
    else:
        other, format = folder.adapter / "peft", "peft"
    with contextlib.suppress(FileFormatError):  # ours holds any adapter; others what their programs know
        written.append(lorimer.save(setup.adapter, other, format=format, dtype=precision, metadata=metadata))
    return written
