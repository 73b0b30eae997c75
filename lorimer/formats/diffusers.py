"""diffusers' single file, as `pipeline.load_lora_weights` reads it.

    "unet.<path>.lora_A.weight"                      the tensors, in PEFT's names, component first
    header entry "lora_adapter_metadata"             JSON: "unet.r", "unet.lora_alpha", ...

diffusers reads no alpha tensors here; without the header entry it takes alpha = rank. ComfyUI does not look
at the entry and always takes alpha = rank: for it, write kohya's format.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from lorimer import registry
from lorimer.adapters._state import AdapterState, LayerState
from lorimer.errors import FileFormatError
from lorimer.formats._base import Format
from lorimer.formats._checks import alpha_value, header_of, read_adapter_tensors, require_suffix, shown
from lorimer.formats._components import (
    COMPONENTS,
    file_prefix,
    module_paths,
    present_components,
    split_components,
    to_file_path,
)
from lorimer.formats._dialects import (
    FoundLayer,
    in_dialect,
    keyed_tensors,
    make_layer,
    rank_of,
    require_nothing_in_full,
    sort_by_layer,
)
from lorimer.formats._families import FAMILY, names_in_files, names_of
from lorimer.formats._marker import read_marker, write_marker
from lorimer.formats._peft_config import peft_config, read_peft_config
from lorimer.formats._spellings import ALPHAS_ENTRY, is_component_wise, is_elsewhere_spelled
from lorimer.formats.safe_io import parse_json, write_safetensors

_ENTRY = ALPHAS_ENTRY
_ALPHA = ".alpha"  # which some other programs write


class DiffusersFormat(Format):
    """See the module."""

    name = "diffusers"
    description = "one file for picture models; read by diffusers' load_lora_weights"
    dialect = "peft"

    @staticmethod
    def detect(path: Path) -> bool:
        keys = header_of(path).tensors
        is_ours = is_component_wise(keys) and not is_elsewhere_spelled(keys)
        return is_ours and any(".lora" in key for key in keys)

    @staticmethod
    def read(path: Path) -> AdapterState:
        tensors, header = read_adapter_tensors(path)
        where = str(path)
        marker = read_marker(header, where)
        alphas = {key.removesuffix(_ALPHA): value for key, value in tensors.items() if key.endswith(_ALPHA)}
        weights = {key: tensor for key, tensor in tensors.items() if not key.endswith(_ALPHA)}
        method, found = sort_by_layer(weights, "peft", where, marker.method)
        astray = [name + _ALPHA for name in alphas if name not in found]
        if astray:
            raise FileFormatError(f"{path}: alphas without a layer: {shown(astray)}")
        names = names_in_files(marker.metadata.get(FAMILY), found)
        config = _config(header, where)
        by_component: dict[str, dict[str, FoundLayer]] = {}
        for layer, own in found.items():
            component, _, rest = layer.partition(".")
            if component not in COMPONENTS or not rest:
                raise FileFormatError(f"{path}: {layer!r} begins with no component of a picture model")
            by_component.setdefault(component, {})[rest] = own
        layers: dict[str, LayerState] = {}
        for component, its in by_component.items():
            prefix = file_prefix(component, names)
            paths = module_paths({layer: layer.removeprefix(prefix) for layer in its}, where)
            inner = {paths[layer]: own for layer, own in its.items()}
            filed_names = {f"{component}.{paths[layer]}": f"{component}.{layer}" for layer in its}
            ranks = {
                layer: rank_of(method, own.tensors, f"{where}: {layer!r}") for layer, own in inner.items()
            }
            its_config = {
                key.removeprefix(f"{component}."): value
                for key, value in config.items()
                if key.startswith(f"{component}.")
            }
            settled = (
                read_peft_config(its_config, method, ranks, f"{where}: {_ENTRY}", optional_prefix=prefix)
                if its_config
                else {}
            )
            for layer, own in inner.items():
                rank, alpha = settled.get(layer, (None, None))
                name = f"{component}.{layer}"
                filed = filed_names[name]
                if filed in alphas:
                    alpha = alpha_value(alphas[filed], f"{where}: {filed!r}")
                layers[name] = make_layer(
                    method,
                    own.tensors,
                    f"{where}: {name!r}",
                    rank=rank,
                    alpha=alpha,
                    kind=own.kind,
                    dialect="peft",
                )
        its_method = marker.config if marker.method else method.config_of(layers)
        components = present_components(layers, marker.components)
        return AdapterState(method.name, layers, its_method, components, marker.metadata)

    @staticmethod
    def write(state: AdapterState, path: Path) -> None:
        require_suffix(path)
        method = registry.get("method", state.method)
        require_nothing_in_full(state, "diffusers")
        if (method.peft_config or {}).get("peft_type") != "LORA":
            raise FileFormatError(
                f"diffusers reads LoRA and DoRA alone, not {state.method!r}. Use format 'kohya' or "
                "'lorimer', or turn it into plain LoRA first (lorimer.to_lora)"
            )
        state = in_dialect(state, "peft", "diffusers")
        keyed = keyed_tensors(state, "peft", "diffusers")
        tensors: dict[str, Tensor] = {}
        config: dict[str, object] = {}
        names = names_of(state)
        for component, layers in split_components(state, "diffusers", names).items():
            if component not in COMPONENTS:
                raise FileFormatError(
                    f"the diffusers format knows no component {component!r}, only {', '.join(COMPONENTS)}; "
                    "use format 'peft' or 'lorimer'"
                )
            prefix = file_prefix(component, names)
            its_config = peft_config(method, layers, state.config, optional_prefix=prefix)
            config.update({f"{component}.{key}": value for key, value in its_config.items()})
            for layer in layers:
                for suffix, tensor in keyed[f"{component}.{layer}"].items():
                    tensors[f"{component}.{to_file_path(component, layer, names)}.{suffix}"] = tensor
        header = {"format": "pt", _ENTRY: json.dumps(config, ensure_ascii=False), **write_marker(state)}
        write_safetensors(tensors, path, header)


def _config(header: dict[str, str], where: str) -> dict[str, object]:
    config = parse_json(header[_ENTRY], f"{where}: {_ENTRY}") if _ENTRY in header else {}
    if not isinstance(config, dict):
        raise FileFormatError(f"{where}: {_ENTRY} must be a mapping")
    return config
