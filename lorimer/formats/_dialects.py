"""Between adapters and the keys of other programs: telling layers and methods by their names, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from torch import Tensor

from lorimer import registry
from lorimer.adapters._base import MAX_RANK, Method
from lorimer.adapters._state import AdapterState, LayerState
from lorimer.errors import FileFormatError
from lorimer.formats._checks import checked_alpha, checked_components, checked_metadata, checked_rank, shown

_PRECISIONS = {"torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}


@dataclasses.dataclass
class FoundLayer:
    """A layer's tensors by the method's own names, and its kind (see `LayerState`)."""

    tensors: dict[str, Tensor]
    kind: str


def sort_by_layer(
    tensors: Mapping[str, Tensor], dialect: str, where: str, method: str | None = None
) -> tuple[type[Method], dict[str, FoundLayer]]:
    """Find the method that the keys speak of, and give its tensors by layer and by its own names.

    Args:
        tensors: "<layer>.<suffix>" -> tensor, with the suffixes that methods declare for `dialect`, or for
            embeddings in it.
        where: the file, for messages.
        method: the method that the file names, if it does; it decides between methods with equal tensors.

    Raises:
        FileFormatError: there are no keys, a key has no suffix of any method, no single method has these
            suffixes, or a layer lacks a tensor; the keys are listed.
    """
    if not tensors:
        raise FileFormatError(f"{where}: holds no tensors")
    tables = {kind: _suffixes(name) for kind, name in _kinds_of(dialect).items()}
    suffixes = {suffix for table in tables.values() for known in table.values() for suffix in known}
    by_length = sorted(suffixes, key=len, reverse=True)
    found: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        suffix = next((each for each in by_length if key.endswith(f".{each}")), None)
        if suffix is None:
            unknown.append(key)
        else:
            found.setdefault(key.removesuffix(f".{suffix}"), {})[suffix] = tensor
    if unknown:
        raise FileFormatError(f"{where}: keys that no known method writes: {shown(unknown)}")
    chosen = registry.get("method", _fitting_method(found, tables, method, where))
    layers: dict[str, FoundLayer] = {}
    missing: list[str] = []
    for layer, own in found.items():
        kind = next(kind for kind, table in tables.items() if own.keys() <= table[chosen.name].keys())
        names = tables[kind][chosen.name]
        layers[layer] = FoundLayer({names[suffix]: tensor for suffix, tensor in own.items()}, kind)
        lacking = {suffix for suffix, name in names.items() if name in chosen.required({})} - own.keys()
        missing += [f"{layer}.{suffix}" for suffix in lacking]
    if missing:
        raise FileFormatError(f"{where}: incomplete, it lacks {shown(missing)}")
    return chosen, layers


def _kinds_of(dialect: str) -> dict[str, str]:
    """Kind of layer -> the name under which methods declare its suffixes in a dialect."""
    return {"layer": dialect, "embedding": f"{dialect}-embedding"}


def _suffixes(dialect: str) -> dict[str, dict[str, str]]:
    """Method -> suffix in the dialect -> the method's own name of the tensor."""
    return {
        name: {entry[dialect]: tensor for tensor, entry in plugin.tensors.items() if dialect in entry}
        for name, plugin in registry.all_of("method").items()
    }


def _fitting_method(
    found: Mapping[str, Mapping[str, Tensor]],
    tables: Mapping[str, Mapping[str, Mapping[str, str]]],
    named: str | None,
    where: str,
) -> str:
    """The plainest method that explains every layer's suffixes, unless the file says which."""

    def explains(name: str, suffixes: Collection[str]) -> bool:
        return any(suffixes <= table[name].keys() for table in tables.values())  # type: ignore[operator]

    present = {frozenset(own) for own in found.values()}
    every = {suffix for own in present for suffix in own}
    methods = registry.all_of("method")
    fitting = [name for name in methods if all(explains(name, own) for own in present)]
    if named in fitting:
        return str(named)

    def absent(name: str) -> int:
        """How many tensors that the method needs stand nowhere in the file."""
        known = {
            suffix for table in tables.values() for suffix, own in table[name].items() if suffix in every
        }
        found_names = {
            table[name][suffix] for table in tables.values() for suffix in known & table[name].keys()
        }
        return len(methods[name].required({}) - found_names)

    if not fitting:
        raise FileFormatError(f"{where}: no known method has the tensors {shown(every)} together")
    return min(fitting, key=lambda name: (absent(name), len(methods[name].required({})), name))


def require_writable(state: AdapterState) -> None:
    """Raise `FileFormatError` for a state that no reader would take back."""
    if not state.layers and not state.full:
        raise FileFormatError("the adapter has no layers; there is nothing to write")
    checked_components(list(state.components), "the adapter")
    checked_metadata(state.metadata, "the adapter")
    for path, layer in state.layers.items():
        checked_rank(layer.rank, repr(path))
        checked_alpha(layer.alpha, repr(path))


def in_dialect(state: AdapterState, dialect: str, format: str) -> AdapterState:
    """The adapter as programs of a dialect know it; the same update of every layer.

    Raises:
        FileFormatError: no program of the dialect can hold such an adapter.
    """
    require_writable(state)
    method = registry.get("method", state.method)
    for path, layer in state.layers.items():
        if layer.groups != 1:
            raise FileFormatError(
                f"the {format} format cannot hold {path!r}: in a convolution with groups = {layer.groups} "
                "its programs expect a factor over all input channels. Use format 'lorimer', or merge"
            )
        known = any(_kinds_of(dialect).get(layer.kind) in own for own in method.tensors.values())
        if layer.stacked or (layer.kind != "layer" and not known):
            raise FileFormatError(
                f"the {format} format cannot hold {path!r}, which is no weight of a layer of its own. "
                "Use format 'lorimer', which holds any adapter, or merge"
            )
    layers = {path: method.to_dialect(layer, dialect) for path, layer in state.layers.items()}
    config = state.config
    for layer in list(layers.values())[:1]:  # what the tensors say themselves may have changed
        config = method(**method.layer_config(layer, config)).config()
    return dataclasses.replace(state, layers=layers, config=config)


def as_read_back(state: AdapterState, dialect: str | None, format: str) -> AdapterState:
    """What a format of this dialect gives for `state` after writing and reading; see `in_dialect`."""
    if dialect is None:
        return state
    method, written = registry.get("method", state.method), in_dialect(state, dialect, format)
    layers = {path: method.from_dialect(layer, dialect) for path, layer in written.layers.items()}
    return dataclasses.replace(written, layers=layers)


def keyed_tensors(state: AdapterState, dialect: str, format: str) -> dict[str, dict[str, Tensor]]:
    """The inverse of `sort_by_layer`, for a state that is `in_dialect`: layer -> suffix -> tensor.

    Raises:
        FileFormatError: the method has no names in this dialect.
    """
    method = registry.get("method", state.method)
    keyed: dict[str, dict[str, Tensor]] = {}
    for path, layer in state.layers.items():
        own = _kinds_of(dialect)[layer.kind]
        nameless = [name for name in layer.tensors if own not in method.tensors.get(name, {})]
        if nameless:
            raise FileFormatError(
                f"the {format} format has no names for the tensors of method {state.method!r}. "
                "Use format 'lorimer', which holds any adapter"
            )
        keyed[path] = {method.tensors[name][own]: tensor for name, tensor in layer.tensors.items()}
    return keyed


def require_nothing_in_full(state: AdapterState, format: str) -> None:
    """Raise `FileFormatError` where parameters were trained in full and the format has no place for them."""
    if state.full:
        raise FileFormatError(
            f"the {format} format cannot hold parameters that were trained in full "
            f"({shown(state.full)}). Use format 'lorimer', which holds any adapter"
        )


def rank_of(method: type[Method], tensors: Mapping[str, Tensor], where: str, stacked: int = 0) -> int | None:
    """The rank that the tensors' shapes show, or None where the method's shapes do not tell.

    Raises:
        FileFormatError: tensors disagree, or the rank is 0 or beyond `MAX_RANK`.
    """
    ranks = set()
    for name, axis in method.rank_axes.items():
        if name in tensors:
            if tensors[name].ndim < 2 + stacked:
                raise FileFormatError(f"{where}: {name} of shape {tuple(tensors[name].shape)} is no matrix")
            ranks.add(tensors[name].shape[axis + stacked])
    if len(ranks) > 1:
        raise FileFormatError(f"{where}: its tensors are of different ranks: {sorted(ranks)}")
    return checked_rank(ranks.pop(), where) if ranks else None


def make_layer(
    method: type[Method],
    tensors: dict[str, Tensor],
    where: str,
    *,
    rank: int | None,
    alpha: float | None,
    stacked: int = 0,
    kind: str = "layer",
    dialect: str | None = None,
) -> LayerState:
    """A layer's state; a declared rank must agree with the tensors, a missing alpha is the rank. `dialect` is
    that of the file where its shapes may not be the method's own."""
    shape_rank = rank_of(method, tensors, where, stacked)
    strange = {str(tensor.dtype) for tensor in tensors.values()} - _PRECISIONS
    if strange:
        raise FileFormatError(f"{where}: adapters are not kept in {shown(strange)}")
    if rank is not None and shape_rank is not None and rank != shape_rank:
        raise FileFormatError(f"{where}: its config says rank {rank}, its tensors are of rank {shape_rank}")
    final = shape_rank if shape_rank is not None else rank
    if final is None:  # without factors, programs of the dialect scale nothing
        named = 1 if alpha is None or not method.ranked else round(alpha)  # any number, by custom a huge one
        final = min(max(named, 1), MAX_RANK)
        alpha = float(final)
    layer = LayerState(tensors, final, float(final) if alpha is None else alpha, stacked=stacked, kind=kind)
    try:
        layer = layer if dialect is None else method.from_dialect(layer, dialect)
    except FileFormatError as error:
        raise FileFormatError(f"{where}: {error}") from error
    _check_factors(method, layer, where)
    return layer


def _check_factors(method: type[Method], layer: LayerState, where: str) -> None:
    """Raise `FileFormatError` where the factors of an update cannot be multiplied."""
    try:
        factors = method.factors(layer, {})
        fitting = factors is None or factors[0].shape[-1] == factors[1].shape[-2]
    except FileFormatError as error:
        raise FileFormatError(f"{where}: {error}") from error
    except (RuntimeError, IndexError, ValueError):
        fitting = False
    if not fitting:
        shapes = {name: tuple(tensor.shape) for name, tensor in layer.tensors.items()}
        raise FileFormatError(f"{where}: its tensors do not belong together: {shapes}")
