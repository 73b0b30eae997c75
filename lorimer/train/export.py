"""The trained adapter, in the formats that lorimer and other programs load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

import lorimer
from lorimer.adapters._state import AdapterState
from lorimer.errors import FileFormatError, UsageError
from lorimer.train.run_folder import RunFolder
from lorimer.train.setup import Setup

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export(setup: Setup, folder: RunFolder, steps: int) -> list[Path]:
    """Write `adapter/adapter.safetensors`, and beside it what other programs read: one kohya file for a
    picture model, a PEFT folder for a plain one. A method that they do not know is written as plain LoRA
    where that is the same in other words; else there is no second file. Returns the paths.
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
    for state in _for_other_programs(setup):
        state.metadata.update(metadata)
        with contextlib.suppress(FileFormatError):  # ours holds any adapter; others what their programs know
            written.append(lorimer.write(state, other, format=format, dtype=precision))
            break
    return written


def _for_other_programs(setup: Setup) -> Iterator[AdapterState]:
    """The adapter as it is, and as plain LoRA where that is exact."""
    state = setup.adapter.state()
    yield state
    with contextlib.suppress(UsageError):  # the update is no product of factors
        yield lorimer.to_lora(state).state
