"""The layers of a kohya file, whoever wrote it: keys to methods, names to modules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy
import torch
from torch import Tensor

from lorimer import registry
from lorimer.adapters._base import Method
from lorimer.adapters._state import LayerState
from lorimer.errors import FileFormatError
from lorimer.families._names import Place
from lorimer.formats._bundle import PREFIX
from lorimer.formats._checks import alpha_value, shown
from lorimer.formats._components import module_paths
from lorimer.formats._dialects import FoundLayer, make_layer, sort_by_layer
from lorimer.formats._families import FAMILY, Chosen, family_to_read
from lorimer.formats._fused import matrix_shape, split, swap_halves
from lorimer.formats._marker import Marker
from lorimer.formats._spellings import respelled

_ALPHA = ".alpha"
_MIDDLE = ".lora_mid.weight"


def read_layers(
    tensors: Mapping[str, Tensor],
    bundle: Collection[str],
    marker: Marker,
    header: Mapping[str, str],
    where: str,
    told: str | None = None,
) -> tuple[type[Method], dict[str, LayerState], Chosen]:
    """(method, path -> layer, family) from a file's keys.

    Args:
        bundle: the keys of the tokens beside them.
        told: the family, where the caller knows it.

    Raises:
        FileFormatError: a key that is not understood; all such are listed.
    """
    told = told or marker.metadata.get(FAMILY)
    tensors = _without_middle(respelled(tensors, where), where)
    alphas = {key.removesuffix(_ALPHA): tensor for key, tensor in tensors.items() if key.endswith(_ALPHA)}
    weights = {key: tensor for key, tensor in tensors.items() if not key.endswith(_ALPHA)}
    if not tensors and bundle:
        return registry.get("method", "full"), {}, _family((), {}, bundle, told, header, where)
    method, found = sort_by_layer(weights, "kohya", where, marker.method)
    astray = [name + _ALPHA for name in alphas if name not in found]
    if astray:
        raise FileFormatError(f"{where}: alphas without a layer: {shown(astray)}")
    suffixed = {name: _suffixed(own.tensors, method) for name, own in found.items()}
    shapes = {name: shape for name, own in suffixed.items() if (shape := matrix_shape(own))}
    family = _family(found, shapes, bundle, told, header, where)
    layers: dict[str, LayerState] = {}
    meant: dict[str, str] = {}
    for name, own in found.items():
        place = f"{where}: {name!r}"
        alpha = alpha_value(alphas[name], place) if name in alphas else None
        for path, part in _parts(name, own, alpha, family.names.places(name), method, marker, place):
            layers[path] = part
            meant[f"{name} {path}"] = path
    module_paths(meant, where)
    return method, layers, family


def _family(
    layers: Iterable[str],
    shapes: Mapping[str, tuple[int, int]],
    bundle: Collection[str],
    told: str | None,
    header: Mapping[str, str],
    where: str,
) -> Chosen:
    kinds = {key.removeprefix(PREFIX).partition(".")[2] for key in bundle}
    return family_to_read(layers, shapes, kinds, told, header, where)


def _parts(
    name: str,
    found: FoundLayer,
    alpha: float | None,
    places: Sequence[Place],
    method: type[Method],
    marker: Marker,
    where: str,
) -> Iterator[tuple[str, LayerState]]:
    """The modules that a layer of the file holds, each with its adapter."""
    tensors = _suffixed(found.tensors, method)
    try:
        if len(places) > 1:
            parts = split(tensors, places[0].shares, marker.fused.get(name))
        else:
            parts = [(swap_halves(tensors) if places[0].halves_swapped else tensors, 1.0)]
    except FileFormatError as error:
        modules = " and ".join(repr(module) for module in places[0].modules)
        raise FileFormatError(f"{where}: an adapter on {modules} {error} cannot be read") from error
    names = {entry["kohya"]: tensor for tensor, entry in method.tensors.items() if "kohya" in entry}
    for module, part in zip(places[0].modules, parts, strict=True):
        if part is None:
            continue
        own, share = {names[suffix]: tensor for suffix, tensor in part[0].items()}, part[1]
        its = alpha if alpha is None else float(str(numpy.float32(alpha * share)))
        yield module, make_layer(method, own, where, rank=None, alpha=its, kind=found.kind, dialect="kohya")


def _suffixed(tensors: Mapping[str, Tensor], method: type[Method]) -> dict[str, Tensor]:
    return {method.tensors[name]["kohya"]: tensor for name, tensor in tensors.items()}


def _without_middle(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """LyCORIS's LoCon in Tucker form as plain LoRA, in float32: a convolution in three factors,
    up · mid · down (arXiv 2309.14859, section 3.2), of which mid and down make one."""
    rest = dict(tensors)
    for key in [key for key in tensors if key.endswith(_MIDDLE)]:
        name = key.removesuffix(_MIDDLE)
        down, up = f"{name}.lora_down.weight", f"{name}.lora_up.weight"
        middle, inner, outer = rest.pop(key).float(), rest.get(down), rest.get(up)
        if (
            inner is None
            or outer is None
            or not inner.ndim == middle.ndim >= 3
            or inner.shape[2:].numel() != 1
            or middle.shape[1] != inner.shape[0]
        ):
            raise FileFormatError(f"{where}: {key!r} does not belong to factors of a convolution beside it")
        rest[down] = torch.einsum("ij...,jn->in...", middle, inner.float().flatten(1))
        rest[up] = outer.float()
    return rest
