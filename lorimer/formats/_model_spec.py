"""Header entries of kohya's files: what programs and managers of model files look at.

`ss_*` (kohya-ss/sd-scripts) says how it was trained, `modelspec.*` (Stability-AI/ModelSpec 1.0.1) what it is,
`sshs_*` what its bytes hash to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from lorimer import registry
from lorimer.adapters._state import AdapterState
from lorimer.errors import FileFormatError
from lorimer.families._names import FileNames
from lorimer.formats._checks import most_common, plain_number
from lorimer.formats._marker import portable
from lorimer.formats.safe_io import safetensors_bytes

# Our names of facts -> header entries that carry them; a foreign file's are read back in this order.
_ENTRIES = {
    "author": ("modelspec.author",),
    "base_model": ("ss_sd_model_name",),
    "date": ("modelspec.date",),
    "description": ("modelspec.description",),
    "epochs": ("ss_epoch",),
    "learning_rate": ("ss_learning_rate",),
    "license": ("modelspec.license",),
    "pictures": ("ss_num_train_images",),
    "prediction_type": ("modelspec.prediction_type",),
    "resolution": ("modelspec.resolution", "ss_resolution"),
    "seed": ("ss_seed",),
    "steps": ("ss_steps", "ss_max_train_steps"),
    "tag_frequency": ("ss_tag_frequency",),
    "tags": ("modelspec.tags",),
    "thumbnail": ("modelspec.thumbnail",),
    "title": ("modelspec.title", "ss_output_name"),
    "trigger": ("modelspec.trigger_phrase",),
    "usage_hint": ("modelspec.usage_hint",),
}
_VELOCITY = "v_prediction"  # "v" in ModelSpec
_MAX_THUMBNAIL = 512 * 1024  # characters; every program that lists files reads their headers


def header_entries(
    state: AdapterState, path: Path, names: FileNames, suffixes: Collection[str]
) -> dict[str, str]:
    """The header of `state` in a file at `path`, but for its hashes.

    Args:
        suffixes: of the tensors in the file.

    Raises:
        FileFormatError: the thumbnail is no picture or too large.
    """
    facts = {"title": path.stem, **portable(state.metadata)}
    _check_thumbnail(facts.get("thumbnail"))
    layers = state.layers.values()
    is_plain = set(suffixes) <= {"lora_down.weight", "lora_up.weight"}  # all that kohya's own module has
    is_velocity = facts.get("prediction_type") == _VELOCITY
    architecture = names.velocity_architecture if is_velocity else ""
    header = {
        "ss_network_module": "networks.lora" if is_plain else "lycoris.kohya",
        "ss_network_args": json.dumps(_network_args(state)),
        "ss_base_model_version": names.base_version,
        **names.header,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": (architecture or names.architecture) + "/lora",
        "modelspec.implementation": "diffusers",
    }
    if layers:
        header["ss_network_dim"] = str(most_common(layer.rank for layer in layers))
        header["ss_network_alpha"] = str(plain_number(most_common(layer.alpha for layer in layers)))
    for fact, value in facts.items():
        header.update(dict.fromkeys(_ENTRIES.get(fact, ()), value))
    if is_velocity:
        header["modelspec.prediction_type"] = "v"
    side = facts.get("resolution", str(names.side))  # ModelSpec asks for one, as 512x512
    header["modelspec.resolution"] = f"{side}x{side}" if side.isdigit() else side
    return header


def foreign_metadata(header: Mapping[str, str]) -> dict[str, str]:
    """Facts from another program's header entries."""
    found = {}
    for fact, entries in _ENTRIES.items():
        values = [header[entry] for entry in entries if header.get(entry, "None") not in ("", "None")]
        if values:
            found[fact] = values[0]
    if found.get("prediction_type") == "v":
        found["prediction_type"] = _VELOCITY
    return found


def hashes(tensors: dict[str, Tensor], header: dict[str, str]) -> dict[str, str]:
    """SHA-256 of the tensors' bytes, and the older one of 64 kB behind the first megabyte of the file as it
    is with `ss_*` entries alone: what extensions of A1111 know a file by."""
    pieces = safetensors_bytes(tensors, {key: value for key, value in header.items() if key[:3] == "ss_"})
    whole, window, place = hashlib.sha256(), hashlib.sha256(), 0
    begin, end = 0x100000, 0x110000
    for number, piece in enumerate(pieces):
        if number >= 2:  # behind the header
            whole.update(piece)
        window.update(piece[max(begin - place, 0) : max(end - place, 0)])
        place += len(piece)
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": window.hexdigest()[:8]}


def _network_args(state: AdapterState) -> dict[str, str]:
    """kohya's `conv_dim` and `conv_alpha`, where layers with kernels beyond 1 x 1 are adapted."""
    method = registry.get("method", state.method)
    kernels = [
        layer
        for layer in state.layers.values()
        if any(
            tensor.ndim == 4 and tensor.shape[2:].numel() > 1
            for name, tensor in layer.tensors.items()
            if name in method.rank_axes
        )
    ]
    if not kernels:
        return {}
    return {
        "conv_dim": str(most_common(layer.rank for layer in kernels)),
        "conv_alpha": str(plain_number(most_common(layer.alpha for layer in kernels))),
    }


def _check_thumbnail(value: str | None) -> None:
    if value is None:
        return
    if not value.startswith("data:image/"):
        raise FileFormatError('thumbnail must be a picture as "data:image/jpeg;base64,...", not a path')
    if len(value) > _MAX_THUMBNAIL:
        raise FileFormatError(
            f"the thumbnail takes {len(value) // 1024} kB; at most {_MAX_THUMBNAIL // 1024} fit into a "
            "header. Make it a JPEG of 256 x 256 pixels"
        )
