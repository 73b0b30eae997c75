"""kohya's single file, what ComfyUI, A1111, Forge and most tools for pictures read.

    "lora_unet_down_blocks_0_..._to_q.lora_down.weight", ".lora_up.weight", ".alpha"

The update is alpha / rank · up · down for each layer; a missing alpha means scale 1. diffusers takes the most
common alpha for all of such a file: where alphas are mixed, write diffusers' own format for it.

What a layer is called depends on the family of models (`families/_names.py`). Files of ComfyUI
("diffusion_model.<native path>.lora_A.weight"), OneTrainer, SimpleTuner, ai-toolkit and older diffusers are
read, too (`_spellings.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lorimer import registry
from lorimer.adapters._base import Method
from lorimer.adapters._state import AdapterState, LayerState
from lorimer.errors import FileFormatError
from lorimer.families._names import FileNames, Place
from lorimer.formats._base import Format
from lorimer.formats._bundle import PREFIX, TOKENS, bundled, in_order_of_tokens, unbundled
from lorimer.formats._checks import alpha_tensor, header_of, read_adapter_tensors, require_suffix
from lorimer.formats._components import present_components, require_components
from lorimer.formats._dialects import as_read_back, in_dialect, keyed_tensors
from lorimer.formats._families import family_to_write
from lorimer.formats._fused import fuse, swap_halves
from lorimer.formats._kohya_reading import read_layers
from lorimer.formats._marker import read_marker, write_marker
from lorimer.formats._model_spec import foreign_metadata, hashes, header_entries
from lorimer.formats._spellings import ALPHAS_ENTRY, BEGINNINGS, is_other_programs
from lorimer.formats.safe_io import safetensors_bytes, write_files_atomic


class KohyaFormat(Format):
    """See the module."""

    name = "kohya"
    description = "one file for picture models; read by ComfyUI, A1111, Forge, diffusers and most tools"
    dialect = "kohya"

    @staticmethod
    def detect(path: Path) -> bool:
        keys = header_of(path).tensors
        return any(key.startswith(BEGINNINGS) for key in keys) or is_other_programs(path, keys)

    @staticmethod
    def read(path: Path) -> AdapterState:
        return _read(path, None)

    @classmethod
    def read_for(cls, path: Path, family: str) -> AdapterState:
        return _read(path, family)

    @classmethod
    def kept(cls, state: AdapterState) -> AdapterState:
        read_back = as_read_back(state, cls.dialect, cls.name)
        evened = _evened(read_back, family_to_write(state, cls.name).names)
        return dataclasses.replace(evened, full=in_order_of_tokens(state))

    @staticmethod
    def write(state: AdapterState, path: Path) -> None:
        require_suffix(path)
        state = in_dialect(state, "kohya", "kohya")
        require_components(state, "kohya")
        names = family_to_write(state, "kohya").names
        tensors, ranks = keyed_layers(state, names)
        suffixes = {key.partition(".")[2] for key in tensors} - {"alpha"}
        tensors.update(bundled(state, names, "kohya"))
        header = header_entries(state, path, names, suffixes)
        header.update(hashes(tensors, header))
        write_files_atomic({path: safetensors_bytes(tensors, {**header, **write_marker(state, ranks)})})


def _read(path: Path, told: str | None) -> AdapterState:
    """The adapter in `path`, for the family `told`, else for that which the file shows."""
    tensors, header = read_adapter_tensors(path)
    where = str(path)
    marker = read_marker(header, where)
    _require_own_alphas(tensors, header, where)
    bundle = {key: tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
    weights = {key: tensor for key, tensor in tensors.items() if key not in bundle}
    method, layers, family = read_layers(weights, bundle, marker, header, where, told)
    metadata = dict(marker.metadata or foreign_metadata(header))
    if told is not None:
        metadata["family"] = told
    elif family.sure:
        metadata.setdefault("family", family.name)
    full, tokens = unbundled(bundle, family.names, metadata, marker.full, where)
    if full:
        metadata[TOKENS] = metadata.get(TOKENS, tokens)
    config = marker.config if marker.method else method.config_of(layers)
    components = present_components([*layers, *full], marker.components)
    return AdapterState(method.name, layers, config, components, metadata, full)


def _require_own_alphas(keys: Iterable[str], header: Mapping[str, str], where: str) -> None:
    """Raise `FileFormatError` where diffusers keeps the alphas in an entry that is not read here."""
    if ALPHAS_ENTRY in header and not any(key.startswith(BEGINNINGS) for key in keys):
        raise FileFormatError(
            f"{where}: its alphas stand in the header entry {ALPHAS_ENTRY!r}, which is read only in files "
            "of a pipeline. Load it onto one with diffusers and save it with save_lora_weights"
        )


def keyed_layers(state: AdapterState, names: FileNames) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """(key -> tensor, name -> ranks of the parts of layers that are kept as one) of a state in kohya's
    dialect."""
    state = _evened(state, names)
    keyed = keyed_tensors(state, "kohya", "kohya")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, list[int]] = {}
    for place, members in _by_name(state, names):
        try:
            own, of_parts = _together(place, [keyed.get(path) for path in place.modules])
        except FileFormatError as error:
            raise FileFormatError(_cannot_hold(place, error)) from error
        if of_parts:
            ranks[place.native] = of_parts
        scale = next(iter(members.values())).scale
        rank = sum(layer.rank for layer in members.values())
        tensors.update({f"{place.native}.{suffix}": tensor for suffix, tensor in own.items()})
        tensors[f"{place.native}.alpha"] = alpha_tensor(scale * rank)
    return tensors, ranks


def _by_name(state: AdapterState, names: FileNames) -> Iterator[tuple[Place, dict[str, LayerState]]]:
    """(place, layers that lie there by path), for each of the file's layers."""
    found: dict[str, tuple[Place, dict[str, LayerState]]] = {}
    for path, layer in state.layers.items():
        place = names.place(path)
        assert place is not None  # `family_to_write` saw to it
        found.setdefault(place.native, (place, {}))[1][path] = layer
    yield from found.values()


def _together(place: Place, parts: list[dict[str, Tensor] | None]) -> tuple[dict[str, Tensor], list[int]]:
    """(tensors of the file's layer, ranks of its parts)."""
    if len(parts) > 1:
        return fuse(parts, place.shares)
    own = parts[0]
    assert own is not None
    return swap_halves(own) if place.halves_swapped else own, []


def _evened(state: AdapterState, names: FileNames) -> AdapterState:
    """The adapter with one scale for all the parts of each layer of the file, which has one alpha for them.
    The others' factor goes into their tensors, in float32."""
    method = registry.get("method", state.method)
    layers = dict(state.layers)
    for place, members in _by_name(state, names):
        scale = next(iter(members.values())).scale
        if len(place.modules) > 1 and any(not math.isclose(each.scale, scale) for each in members.values()):
            layers.update({path: _scaled(layer, scale, method) for path, layer in members.items()})
    return dataclasses.replace(state, layers=layers)


def _scaled(layer: LayerState, scale: float, method: type[Method]) -> LayerState:
    """The same update at another scale."""
    tensors = {name: tensor.to(torch.float32) for name, tensor in layer.tensors.items()}
    for name in tensors:
        if method.tensors.get(name, {}).get("kohya") in ("lora_up.weight", "hada_w1_a"):
            tensors[name] = tensors[name] * (layer.scale / scale)
    return dataclasses.replace(layer, tensors=tensors, alpha=scale * layer.rank)


def _cannot_hold(place: Place, error: FileFormatError) -> str:
    modules = " and ".join(repr(module) for module in place.modules)
    return (
        f"the kohya format keeps {modules} in one layer, {place.native!r}, and cannot hold adapters {error}. "
        "Use format 'lorimer' or 'diffusers', or turn them into plain LoRA first (lorimer.to_lora)"
    )
