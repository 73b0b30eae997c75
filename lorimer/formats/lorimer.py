"""lorimer's own format: one safetensors file that holds any adapter of any method exactly.

"<module path>:<tensor name>"     the tensors, as the method names and shapes them
"<parameter path>"                what was trained in full
header entry "lorimer"            JSON: version, method, config, components, metadata; per layer its rank,
                                  alpha, groups and kind; per parameter trained in full, which rows
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from lorimer import registry
from lorimer.adapters._state import AdapterState, LayerState, ParameterState
from lorimer.errors import FileFormatError
from lorimer.formats._base import Format
from lorimer.formats._checks import (
    checked_alpha,
    checked_components,
    checked_config,
    checked_metadata,
    checked_method,
    checked_rank,
    header_of,
    read_adapter_tensors,
    require_suffix,
    shown,
)
from lorimer.formats._dialects import make_layer, require_writable
from lorimer.formats._marker import portable
from lorimer.formats.safe_io import parse_json, write_safetensors

_ENTRY = "lorimer"
_VERSION = 2
_LAYER_FIELDS = ("rank", "alpha", "groups", "stacked", "kind")
_FIELDS = {"version", "method", "config", "components", "metadata", "layers", "full"}


class LorimerFormat(Format):
    """See the module."""

    name = "lorimer"
    description = "one file that holds any adapter of any method exactly; read by lorimer"

    @staticmethod
    def detect(path: Path) -> bool:
        return _ENTRY in header_of(path).metadata

    @staticmethod
    def read(path: Path) -> AdapterState:
        tensors, header = read_adapter_tensors(path)
        if _ENTRY not in header:
            raise FileFormatError(f"{path}: not in lorimer's format: its header has no entry {_ENTRY!r}")
        facts = _facts(parse_json(header[_ENTRY], f"{path}: header entry {_ENTRY}"), path)
        method = registry.get("method", facts["method"])
        config = checked_config(method, facts["config"], str(path))
        required, known = method.required(config), method.known(config)
        by_layer: dict[str, dict[str, Tensor]] = {name: {} for name in facts["layers"]}
        full: dict[str, ParameterState] = {}
        unknown = []
        for key, tensor in tensors.items():
            layer, _, name = key.rpartition(":")
            if key in facts["full"]:
                full[key] = ParameterState(tensor, _rows(facts["full"][key], f"{path}: {key!r}"))
            elif layer in by_layer and name in known:
                by_layer[layer][name] = tensor
            else:
                unknown.append(key)
        if unknown:
            raise FileFormatError(f"{path}: keys that its header does not speak of: {shown(unknown)}")
        missing = [f"{layer}:{name}" for layer, own in by_layer.items() for name in required - own.keys()]
        missing += facts["full"].keys() - full.keys()
        if missing or not (by_layer or full):
            raise FileFormatError(f"{path}: incomplete, it lacks {shown(missing) or 'every layer'}")
        layers = {
            layer: _layer(method, own, facts["layers"][layer], f"{path}: {layer!r}")
            for layer, own in by_layer.items()
        }
        return AdapterState(
            facts["method"],
            layers,
            config,
            tuple(facts["components"]),
            checked_metadata(facts["metadata"], str(path)),
            full,
        )

    @staticmethod
    def write(state: AdapterState, path: Path) -> None:
        require_suffix(path)
        require_writable(state)
        facts = {
            "version": _VERSION,
            "method": state.method,
            "config": state.config,
            "components": state.components,
            "metadata": portable(state.metadata),
            "layers": {
                layer: {field: getattr(own, field) for field in _LAYER_FIELDS}
                for layer, own in state.layers.items()
            },
            "full": {name: each.rows for name, each in state.full.items()},
        }
        tensors = {
            f"{layer}:{name}": tensor
            for layer, own in state.layers.items()
            for name, tensor in own.tensors.items()
        }
        tensors.update({name: each.value for name, each in state.full.items()})
        write_safetensors(tensors, path, {_ENTRY: json.dumps(facts, ensure_ascii=False, allow_nan=False)})


def _facts(facts: Any, path: Path) -> dict[str, Any]:
    """The header entry, checked in its outlines."""
    if not isinstance(facts, dict) or type(facts.get("version")) is not int:
        raise FileFormatError(f"{path}: header entry {_ENTRY!r} must be a mapping with a version")
    if facts["version"] > _VERSION:
        raise FileFormatError(
            f"{path}: written by a newer lorimer (version {facts['version']}); update lorimer"
        )
    if facts["version"] == 1:  # before stacks and full training
        facts = {**facts, "full": {}}
    if facts.keys() != _FIELDS:
        raise FileFormatError(f"{path}: header entry {_ENTRY!r} must hold just {shown(_FIELDS)}")
    checked_method(facts["method"], str(path))
    checked_components(facts["components"], str(path))
    if not isinstance(facts["layers"], dict) or not isinstance(facts["full"], dict):
        raise FileFormatError(f"{path}: layers and full must be mappings")
    return facts


def _layer(method: Any, tensors: dict[str, Tensor], entry: Any, where: str) -> LayerState:
    entry = {"stacked": 0, "kind": "layer", **entry} if isinstance(entry, dict) else {}  # as in version 1
    if entry.keys() != set(_LAYER_FIELDS):
        raise FileFormatError(f"{where}: its entry must hold {', '.join(_LAYER_FIELDS)}")
    if type(entry["groups"]) is not int or entry["groups"] < 1:
        raise FileFormatError(f"{where}: groups must be a whole number of at least 1")
    if entry["stacked"] not in (0, 1) or entry["kind"] not in ("layer", "embedding", "parameter"):
        raise FileFormatError(f"{where}: stacked must be 0 or 1, kind one of layer, embedding, parameter")
    rank, alpha = checked_rank(entry["rank"], where), checked_alpha(entry["alpha"], where)
    stacked, kind = entry["stacked"], entry["kind"]
    layer = make_layer(method, tensors, where, rank=rank, alpha=alpha, stacked=stacked, kind=kind)
    layer.groups = entry["groups"]
    return layer


def _rows(value: Any, where: str) -> tuple[int, ...] | None:
    """Indices of the rows that were trained, or None for all."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(row) is int and row >= 0 for row in value):
        raise FileFormatError(f"{where}: rows must be a list of indices")
    return tuple(value)
