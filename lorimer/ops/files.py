"""Saving an attached adapter and loading one onto a model, in any registered file format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lorimer import registry
from lorimer.adapters._base import Adapter, Method
from lorimer.adapters._state import AdapterState
from lorimer.attachment.attach import build_at, install
from lorimer.attachment.attached import AttachedAdapter
from lorimer.attachment.survey import survey
from lorimer.attachment.tied import retied
from lorimer.errors import FileFormatError, LorimerError, UsageError, suggest
from lorimer.formats._base import Format
from lorimer.formats.safe_io import read_safetensors_header
from lorimer.layers.sites import Site


def save(
    adapter: AttachedAdapter,
    path: str | Path,
    *,
    format: str = "peft",
    component: str | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write an attached adapter to `path` in a registered format; returns the path.

    Args:
        format: "peft" (a folder), "diffusers" or "kohya" (one file for picture models), "lorimer" (one
            file that holds anything), or any other registered format.
        component: what the adapted model is within a larger one, e.g. "unet" for `pipeline.unet`; files
            for picture models need it unless the adapted model itself has components.
        dtype: precision in the file; by default that of the adapter.
        metadata: facts to carry, e.g. {"title": ..., "trigger": ..., "base_model": ...}.

    Raises:
        FileFormatError: the format cannot hold this adapter. Nothing is written.
        UsageError: `dtype` is too coarse for an adapter.
    """
    state = adapter.state()
    if component is not None:
        state = _as_component(state, component)
    state.metadata.update(metadata or {})
    return write(state, path, format=format, dtype=dtype)


def write(
    state: AdapterState, path: str | Path, *, format: str = "peft", dtype: torch.dtype | None = None
) -> Path:
    """Write an adapter from memory to `path`, as `save` does for one on a model; returns the path.

    Raises: as `save`.
    """
    if dtype is not None and not (dtype.is_floating_point and dtype.itemsize > 1):
        raise UsageError(f"an adapter is kept in float32, float16 or bfloat16, not in {dtype}")
    if dtype is not None:
        state = in_precision(state, dtype)
    registry.get("format", format).write(state, Path(path))
    return Path(path)


def in_precision(state: AdapterState, dtype: torch.dtype) -> AdapterState:
    """The adapter with its tensors in another precision."""
    layers = {
        path: replace(layer, tensors={name: tensor.to(dtype) for name, tensor in layer.tensors.items()})
        for path, layer in state.layers.items()
    }
    full = {name: replace(each, value=each.value.to(dtype)) for name, each in state.full.items()}
    return replace(state, layers=layers, full=full)


def read(path: str | Path, *, format: str | None = None) -> AdapterState:
    """The adapter in a file or folder, whatever its format.

    Raises:
        FileFormatError: no format recognises it, or it is broken.
    """
    path = Path(path)
    return (recognise(path) if format is None else registry.get("format", format)).read(path)


def recognise(path: Path) -> type[Format]:
    """The format of a file or folder.

    Raises:
        FileFormatError: there is none of that name, it is broken or a pickle, or no format knows it.
    """
    try:
        if not path.exists():
            raise FileFormatError(f"{path}: there is no such file or folder")
        for plugin in registry.all_of("format").values():
            if plugin.detect(path):
                return plugin
    except OSError as error:  # no permission, a name too long
        raise FileFormatError(f"{path}: cannot be read: {error}") from error
    if not path.is_dir():
        read_safetensors_header(path)  # says why where it is no weight file at all
    raise FileFormatError(
        f"{path}: not an adapter that lorimer knows. Known formats: {', '.join(registry.names('format'))}"
    )


def load(
    model: nn.Module,
    path: str | Path,
    *,
    name: str = "default",
    format: str | None = None,
    component: str | None = None,
) -> AttachedAdapter:
    """Attach the adapter in `path` to `model`, every tensor of it or nothing.

    Args:
        component: take this part of a file for a larger model, e.g. "unet" to load a picture adapter onto
            `pipeline.unet`.

    Raises:
        FileFormatError: the file is broken, or names layers that the model lacks or shapes that do not
            fit; all are listed. The model is untouched.
    """
    state = read(path, format=format)
    if component is not None:
        state = _component_of(state, component, source=str(path))
    return attach_state(model, state, name=name, source=str(path))


def attach_state(
    model: nn.Module, state: AdapterState, *, name: str = "default", source: str = "adapter"
) -> AttachedAdapter:
    """Attach an adapter from memory; see `load`. A model with a method `make_room` is asked for it first: new
    tokens are rows that its embeddings lack."""
    if (make_room := getattr(model, "make_room", None)) is not None:
        state = make_room(state)
    found = survey(model)
    present, modules = found.sites, found.modules
    absent = [component for component in state.components if component not in modules]
    if absent:
        raise FileFormatError(
            f"{source} is for a model with the parts {', '.join(state.components)}, and this "
            f"{type(model).__name__} has no {absent[0]!r}; to load one part, pass component={absent[0]!r}"
        )
    problems: list[str] = []
    planned: dict[str, tuple[Site, Adapter | None]] = {}
    for path, method, tensors in _wanted(state):
        site = present.get(path)
        if site is None:
            known = (
                f"{path!r} is a {type(modules[path]).__name__}, which cannot be adapted"
                if path in modules
                else ""
            )
            problems.append(known or f"the model has no {path!r}.{suggest(path, present)}")
        elif path in planned:
            problems.append(f"{path!r} is both adapted and trained in full")
        else:
            planned[path] = (site, _build(method, site, tensors, problems))
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise FileFormatError(f"{source} does not fit this {type(model).__name__}:\n  {shown}{more}")
    if not planned:
        raise FileFormatError(f"{source} holds no layers")
    ready = {path: (site, adapter) for path, (site, adapter) in planned.items() if adapter is not None}
    return install(model, retied(found, ready), name)


def _wanted(state: AdapterState) -> Iterator[tuple[str, Method, Mapping[str, Tensor]]]:
    """(path, method, tensors) of everything in the state."""
    method, full = registry.get("method", state.method), registry.get("method", "full")
    for path, layer in state.layers.items():
        config = method.layer_config(layer, state.config)
        yield path, method(rank=layer.rank, alpha=layer.alpha, **config), layer.tensors
    for name, parameter in state.full.items():
        path = name.removesuffix(".weight")
        yield path, full(rows=parameter.rows), {"value": parameter.value}


def _as_component(state: AdapterState, component: str) -> AdapterState:
    """The state of a model that is `component` of a larger one."""
    if state.components:
        raise UsageError(
            f"the adapter has the parts {', '.join(state.components)} already; leave component out"
        )
    layers = {f"{component}.{path}": layer for path, layer in state.layers.items()}
    full = {f"{component}.{path}": parameter for path, parameter in state.full.items()}
    return replace(state, layers=layers, full=full, components=(component,))


def _component_of(state: AdapterState, component: str, source: str) -> AdapterState:
    """The part of the state that belongs to `component`, as of a plain model."""
    if component not in state.components:
        held = ", ".join(state.components) or "no parts: it is for a plain model"
        raise FileFormatError(f"{source} has no part {component!r}; it holds {held}")
    prefix = component + "."
    layers = {
        path.removeprefix(prefix): layer for path, layer in state.layers.items() if path.startswith(prefix)
    }
    full = {path.removeprefix(prefix): each for path, each in state.full.items() if path.startswith(prefix)}
    return replace(state, layers=layers, full=full, components=())


def _build(method: Method, site: Site, tensors: Mapping[str, Tensor], problems: list[str]) -> Adapter | None:
    """The adapter with the given tensors; tells `problems` what does not fit."""
    dtype = next(iter(tensors.values())).dtype
    if not dtype.is_floating_point:
        problems.append(f"{site.path!r}: adapters are not kept in {dtype}")
        return None
    try:
        adapter = build_at(method, site, None if dtype in (torch.float16, torch.bfloat16) else dtype)
    except LorimerError as error:
        problems.append(str(error))
        return None
    own = adapter.state_dict()
    unfit = [
        f"{site.path!r}: tensor {name!r} is {'missing' if name in own else 'not known'}"
        for name in sorted(own.keys() ^ tensors.keys())
    ] + [
        f"{site.path!r}: {name} has shape {tuple(tensors[name].shape)}, the layer needs {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and value.shape != tensors[name].shape
    ]
    problems.extend(unfit)
    if not unfit:
        for name, value in own.items():  # which are the adapter's own memory
            value.copy_(tensors[name])
    return adapter
