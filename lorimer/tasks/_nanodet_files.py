"""A NanoDet as a folder: config.json, with its classes and sizes, and model.safetensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from lorimer.errors import FileFormatError
from lorimer.formats.safe_io import (
    json_bytes,
    open_safetensors,
    read_json,
    safetensors_bytes,
    write_files_atomic,
)
from lorimer.models.nanodet import NanoDet, NanoDetConfig

MODEL_TYPE = "nanodet"
_CONFIG = TypeAdapter(NanoDetConfig)
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def read_nanodet(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[NanoDet, NanoDetConfig]:
    """The network in evaluation mode, and its config.

    Raises:
        FileFormatError: a file is missing or broken, the config is of another kind of model, or the weights
            are not those that it needs.
    """
    config = read_config(folder / CONFIG_FILE)
    with torch.device("meta"):
        network = NanoDet(config)
    path = folder / WEIGHTS_FILE
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    with open_safetensors(path) as file:
        held = {name: tuple(info.shape) for name, info in file.header.tensors.items()}
        _require_same(path, wanted, held)
        values = {name: file.read(name).to(dtype) for name in wanted}
    network.load_state_dict(values, assign=True)
    return network.eval(), config


def write_nanodet(network: NanoDet, config: NanoDetConfig, folder: Path) -> None:
    """Write the folder's two files, each whole or not at all. Of an adapted network it is the base.

    Raises:
        FileFormatError: a weight holds NaN or infinity.
        LorimerError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        names = list(NanoDet(config).state_dict())
    held = network.state_dict()
    write_files_atomic(
        {
            folder / CONFIG_FILE: [json_bytes({"model_type": MODEL_TYPE, **asdict(config)})],
            folder / WEIGHTS_FILE: safetensors_bytes({name: held[name].contiguous() for name in names}),
        }
    )


def read_config(path: Path) -> NanoDetConfig:
    """The config in a file.

    Raises:
        FileFormatError: it is missing, broken or of another kind of model.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("model_type") != MODEL_TYPE:
        raise FileFormatError(f'{path}: is not the config of a NanoDet: it lacks "model_type": "nanodet"')
    try:
        config = _CONFIG.validate_python({key: each for key, each in value.items() if key != "model_type"})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise FileFormatError(f"{path}: {place}: {first['msg']}") from error
    twice = [name for name, count in Counter(config.class_names).items() if count > 1]
    if twice:
        raise FileFormatError(f"{path}: class_names: {twice[0]!r} is there twice")
    return config


def _require_same(path: Path, wanted: dict[str, Any], held: dict[str, Any]) -> None:
    wrong = [f"lacks {name}" for name in sorted(wanted.keys() - held.keys())]
    wrong += [f"{name} is of no NanoDet" for name in sorted(held.keys() - wanted.keys())]
    wrong += [
        f"{name} has the shape {held[name]} rather than {wanted[name]}"
        for name in sorted(wanted.keys() & held.keys())
        if held[name] != wanted[name]
    ]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise FileFormatError(f"{path}: does not fit {CONFIG_FILE}: {'; '.join(wrong[:5])}{more}")
