"""PEFT's folder: `adapter_config.json` beside `adapter_model.safetensors`.

    "base_model.model.<path>.lora_A.weight"      the tensors

An adapter over several components (a picture model's U-Net and text encoder) is one such folder for each,
named after the component.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorimer import registry
from lorimer.adapters._base import Method
from lorimer.adapters._state import AdapterState, LayerState, ParameterState
from lorimer.errors import FileFormatError
from lorimer.formats._base import Format
from lorimer.formats._checks import read_adapter_tensors, shown
from lorimer.formats._components import (
    COMPONENTS,
    from_file_path,
    module_paths,
    present_components,
    split_components,
)
from lorimer.formats._dialects import in_dialect, keyed_tensors, make_layer, rank_of, sort_by_layer
from lorimer.formats._families import FAMILY, names_in_files, names_of
from lorimer.formats._marker import portable, read_marker, write_marker
from lorimer.formats._peft_config import method_of, peft_config, read_peft_config
from lorimer.formats._peft_full import full_from_peft, full_to_peft
from lorimer.formats.safe_io import (
    json_bytes,
    read_json,
    read_safetensors_header,
    safetensors_bytes,
    write_files_atomic,
)

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Fields that LoRA and its kin have, and PEFT's other methods do not.
_LORA_FIELDS = {"bias", "fan_in_fan_out", "init_lora_weights", "lora_dropout", "use_rslora"}


class PeftFormat(Format):
    """See the module."""

    name = "peft"
    description = "PEFT folder (adapter_config.json + adapter_model.safetensors); read by PEFT"
    folder = True
    dialect = "peft"

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / _CONFIG).is_file() or bool(_parts(path)) or _is_weights_of_folder(path)

    @staticmethod
    def read(path: Path) -> AdapterState:
        folder = path.parent if _is_weights_of_folder(path) else path
        if (folder / _CONFIG).is_file():
            return _read_part(folder, "")
        parts = _parts(folder)
        if not parts:
            raise FileFormatError(f"{folder}: not a PEFT folder: it has no {_CONFIG}")
        known = {*COMPONENTS, *(name for part in parts for name in _declared(folder / part))}
        if not known.issuperset(parts):
            strangers = shown(set(parts) - known)
            raise FileFormatError(
                f"{folder}: holds adapters in folders of their own; name one of them: {strangers}"
            )
        states = [_read_part(folder / part, part) for part in parts]
        first = states[0]
        if any((state.method, state.config) != (first.method, first.config) for state in states):
            raise FileFormatError(f"{folder}: its parts are of different methods; load them one by one")
        layers = {name: layer for state in states for name, layer in state.layers.items()}
        full = {name: each for state in states for name, each in state.full.items()}
        components = present_components([*layers, *full], _declared(folder / parts[0]))
        return AdapterState(first.method, layers, first.config, components, first.metadata, full)

    @staticmethod
    def write(state: AdapterState, path: Path) -> None:
        if path.is_file():
            raise FileFormatError(f"{path}: a file; the peft format writes a folder")
        method = registry.get("method", state.method)
        state = in_dialect(state, "peft", "peft")
        keyed = keyed_tensors(state, "peft", "peft")
        names = names_of(state)
        parts = split_components(state, "peft", names) if state.components else {"": state.layers}
        _refuse_leftovers(path, set(parts))
        _require_adapted(state, parts)
        base = state.metadata.get("base_model")
        is_portable = portable(state.metadata).get("base_model") == base
        files: dict[Path, Any] = {}
        for part, layers in parts.items():
            start = f"{part}." if part else ""
            tensors = {
                f"{_PREFIX}{layer}.{suffix}": tensor
                for layer in layers
                for suffix, tensor in keyed[start + layer].items()
            }
            full, its_fields = full_to_peft(_within(state.full, start), layers)
            tensors.update({_PREFIX + key: tensor for key, tensor in full.items()})
            config = {
                "base_model_name_or_path": base if is_portable else None,
                "fan_in_fan_out": False,
                "inference_mode": True,
                "init_lora_weights": True,
                "lora_dropout": 0.0,
                "task_type": None,
                "use_rslora": False,
                **its_fields,
                **peft_config(method, layers, state.config),
            }
            # The config last: a folder without one is no adapter.
            header = {"format": "pt", **write_marker(state)}
            files[path / part / _WEIGHTS] = safetensors_bytes(tensors, header)
            files[path / part / _CONFIG] = [json_bytes(_known_fields(config, method))]
        write_files_atomic(files)


def _read_part(folder: Path, component: str) -> AdapterState:
    """One PEFT folder; layer paths begin with `component` where there is one."""
    where = str(folder)
    config = read_json(folder / _CONFIG)
    if not isinstance(config, dict):
        raise FileFormatError(f"{folder / _CONFIG}: must be a mapping")
    tensors, header = read_adapter_tensors(_weights_file(folder))
    foreign = [key for key in tensors if not key.startswith(_PREFIX)]
    if foreign:
        raise FileFormatError(f"{where}: keys that PEFT does not write: {shown(foreign)}")
    marker = read_marker(header, where)
    bare = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    full, bare = full_from_peft(bare, config, where)
    method, found = sort_by_layer(bare, "peft", where, marker.method or method_of(config, where))
    ranks = {layer: rank_of(method, own.tensors, f"{where}: {layer!r}") for layer, own in found.items()}
    settled = read_peft_config(config, method, ranks, f"{where}/{_CONFIG}")
    family = marker.metadata.get(FAMILY)
    names = names_in_files(family, [f"{component}.{layer}" for layer in found]) if component else None
    paths = module_paths({layer: from_file_path(component, layer, names) for layer in found}, where)
    layers: dict[str, LayerState] = {}
    for layer, own in found.items():
        rank, alpha = settled[layer]
        layers[paths[layer]] = make_layer(
            method, own.tensors, f"{where}: {layer!r}", rank=rank, alpha=alpha, kind=own.kind, dialect="peft"
        )
    told = {**method.config_of(layers), **method.from_peft_options(config, layers)}
    its_config = marker.config if marker.method else told
    if config.get("lora_bias") and not its_config.get("bias"):
        raise FileFormatError(f"{where}: lora_bias says that biases were trained, and the file holds none")
    placed = {from_file_path(component, name, names): each for name, each in full.items()}
    missing = [name for name in marker.full if name not in placed and _belongs(name, component)]
    if missing:
        raise FileFormatError(f"{where}: incomplete, it lacks {shown(missing)}")
    base = config.get("base_model_name_or_path")
    metadata = marker.metadata or ({"base_model": base} if isinstance(base, str) and base else {})
    return AdapterState(method.name, layers, its_config, (), metadata, placed)


def _known_fields(fields: dict[str, Any], method: type[Method]) -> dict[str, Any]:
    """The fields that PEFT's config of the method has."""
    if method.peft_alpha == "lora_alpha":
        return fields
    if fields["bias"] != "none":
        raise FileFormatError(
            f"PEFT trains no biases beside {method.name!r}. Use format 'lorimer', which holds any adapter"
        )
    return {name: value for name, value in fields.items() if name not in _LORA_FIELDS}


def _require_adapted(state: AdapterState, parts: Collection[str]) -> None:
    """PEFT saves what was trained in full beside an adapter on the same model only."""
    alone = [name for name in state.full if state.components and name.partition(".")[0] not in parts]
    if alone or not state.layers:
        raise FileFormatError(
            f"the peft format cannot hold parameters trained in full without an adapter beside them: "
            f"{shown(alone or state.full)}. Use format 'lorimer', which holds any adapter"
        )


def _belongs(name: str, component: str) -> bool:
    return not component or name.startswith(f"{component}.")


def _within(full: Mapping[str, ParameterState], start: str) -> dict[str, ParameterState]:
    """What was trained in full in the part whose paths begin with `start`, by its path within it."""
    return {name.removeprefix(start): each for name, each in full.items() if name.startswith(start)}


def _parts(folder: Path) -> list[str]:
    """Names of the folders in `folder` that hold an adapter each."""
    if not folder.is_dir():
        return []
    return sorted(child.name for child in folder.iterdir() if (child / _CONFIG).is_file())


def _declared(folder: Path) -> tuple[str, ...]:
    """The components that a part written by lorimer belongs to."""
    return read_marker(read_safetensors_header(_weights_file(folder)).metadata, str(folder)).components


def _is_weights_of_folder(path: Path) -> bool:
    return path.name == _WEIGHTS and (path.parent / _CONFIG).is_file()


def _weights_file(folder: Path) -> Path:
    """The folder's weights; a pickle is named, so that it is refused as one."""
    pickled = folder / "adapter_model.bin"
    return pickled if pickled.is_file() and not (folder / _WEIGHTS).is_file() else folder / _WEIGHTS


def _refuse_leftovers(folder: Path, parts: set[str]) -> None:
    """Writing beside parts of another adapter would make a mixture of both."""
    present = ({""} if (folder / _CONFIG).is_file() else set()) | set(_parts(folder))
    others = present - parts
    if "" not in parts and others:
        raise FileFormatError(
            f"{folder}: holds another adapter's parts ({shown(others)}); remove them or choose another folder"
        )
