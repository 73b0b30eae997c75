"""kohya's single file, what ComfyUI, A1111, Forge and most tools for pictures read.

    "lora_unet_down_blocks_0_..._to_q.lora_down.weight", ".lora_up.weight", ".alpha"

The update is alpha / rank · up · down for each layer; a missing alpha means scale 1. diffusers takes the most
common alpha for all of a kohya file: where alphas are mixed, write diffusers' own format for it.

The header says what was trained in `ss_*` entries (kohya-ss/sd-scripts) and `modelspec.*` entries
(Stability-AI/ModelSpec 1.0.1).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import Tensor

from lorimer import registry
from lorimer.adapters._state import AdapterState, LayerState
from lorimer.errors import FileFormatError
from lorimer.formats._base import Format
from lorimer.formats._checks import (
    alpha_tensor,
    alpha_value,
    header_of,
    most_common,
    plain_number,
    read_adapter_tensors,
    require_suffix,
    shown,
)
from lorimer.formats._components import module_paths, present_components, split_components
from lorimer.formats._dialects import (
    in_dialect,
    keyed_tensors,
    make_layer,
    require_nothing_in_full,
    sort_by_layer,
)
from lorimer.formats._kohya_names import is_sdxl, kohya_name, module_path
from lorimer.formats._marker import portable, read_marker, write_marker
from lorimer.formats.safe_io import (
    safetensors_bytes,
    write_files_atomic,
)

_ALPHA = ".alpha"
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


class KohyaFormat(Format):
    """See the module."""

    name = "kohya"
    description = "one file for picture models; read by ComfyUI, A1111, Forge, diffusers and most tools"
    dialect = "kohya"

    @staticmethod
    def detect(path: Path) -> bool:
        return any(key.startswith(("lora_unet_", "lora_te")) for key in header_of(path).tensors)

    @staticmethod
    def read(path: Path) -> AdapterState:
        tensors, header = read_adapter_tensors(path)
        where = str(path)
        xl = [key for key in tensors if is_sdxl(key)]
        if xl:
            raise FileFormatError(
                f"{path}: made for Stable Diffusion XL or in original block names ({xl[0]!r}), which lorimer "
                "cannot read yet; convert it to diffusers' names with diffusers' load_lora_weights and "
                "save_lora_weights"
            )
        marker = read_marker(header, where)
        alphas = {key.removesuffix(_ALPHA): tensor for key, tensor in tensors.items() if key.endswith(_ALPHA)}
        weights = {key: tensor for key, tensor in tensors.items() if not key.endswith(_ALPHA)}
        method, found = sort_by_layer(weights, "kohya", where, marker.method)
        unknown = [name for name in found if module_path(name) is None]
        if unknown:
            raise FileFormatError(f"{path}: layers that no known U-Net or CLIP has: {shown(unknown)}")
        astray = [name + _ALPHA for name in alphas if name not in found]
        if astray:
            raise FileFormatError(f"{path}: alphas without a layer: {shown(astray)}")
        paths = module_paths({name: str(module_path(name)) for name in found}, where)
        layers: dict[str, LayerState] = {}
        for name, own in found.items():
            place = f"{where}: {name!r}"
            alpha = alpha_value(alphas[name], place) if name in alphas else None
            layers[paths[name]] = make_layer(
                method, own.tensors, place, rank=None, alpha=alpha, kind=own.kind, dialect="kohya"
            )
        config = marker.config if marker.method else method.config_of(layers)
        components = present_components(layers, marker.components)
        metadata = marker.metadata or _foreign_metadata(header)
        return AdapterState(method.name, layers, config, components, metadata)

    @staticmethod
    def write(state: AdapterState, path: Path) -> None:
        require_suffix(path)
        require_nothing_in_full(state, "kohya")
        state = in_dialect(state, "kohya", "kohya")
        keyed = keyed_tensors(state, "kohya", "kohya")
        tensors: dict[str, Tensor] = {}
        for component, layers in split_components(state, "kohya").items():
            for layer, own in layers.items():
                name = kohya_name(component, layer)
                tensors[name + _ALPHA] = alpha_tensor(own.alpha)
                for suffix, tensor in keyed[f"{component}.{layer}"].items():
                    tensors[f"{name}.{suffix}"] = tensor
        header = _header(state, path)
        header["sshs_model_hash"], header["sshs_legacy_hash"] = _hashes(tensors, header)
        write_files_atomic({path: safetensors_bytes(tensors, {**header, **write_marker(state)})})


def _header(state: AdapterState, path: Path) -> dict[str, str]:
    """Header entries that programs and managers of model files look at."""
    facts = {"title": path.stem, **portable(state.metadata)}
    layers = state.layers.values()
    known = registry.get("method", state.method).tensors
    suffixes = {known[name]["kohya"] for layer in layers for name in layer.tensors}
    is_plain = suffixes == {"lora_down.weight", "lora_up.weight"}  # all that kohya's own module has
    header = {
        "ss_network_module": "networks.lora" if is_plain else "lycoris.kohya",
        "ss_network_dim": str(most_common(layer.rank for layer in layers)),
        "ss_network_alpha": str(plain_number(most_common(layer.alpha for layer in layers))),
        "ss_network_args": json.dumps(_network_args(state)),
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
    }
    for fact, value in facts.items():
        header.update(dict.fromkeys(_ENTRIES.get(fact, ()), value))
    side = facts.get("resolution", "512")  # ModelSpec asks for one, as 512x512
    header["modelspec.resolution"] = f"{side}x{side}" if side.isdigit() else side
    return header


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


def _hashes(tensors: dict[str, Tensor], header: dict[str, str]) -> tuple[str, str]:
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
    return whole.hexdigest(), window.hexdigest()[:8]


def _foreign_metadata(header: dict[str, str]) -> dict[str, str]:
    """Facts from another program's header entries."""
    found = {}
    for fact, entries in _ENTRIES.items():
        values = [header[entry] for entry in entries if header.get(entry, "None") not in ("", "None")]
        if values:
            found[fact] = values[0]
    return found
