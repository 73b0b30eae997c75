"""Where each part of a picture model comes from, and how it is loaded from there.

    FolderPart        a folder of diffusers' or transformers', as in a pipeline's folder
    CheckpointPart    tensors within a checkpoint file, under the names of another code
    MadeTokenizer     CLIP's tokenizer, which follows from data that lorimer carries
    SetScheduler      a sampler whose config is ours, or in part the recipe's

A network's part also says what its files hold, tensor by tensor, so that models can be merged and compared
without being loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lorimer.errors import FileFormatError
from lorimer.families._base import Part
from lorimer.families._clip_vocabulary import END, START, clip_merges, clip_vocabulary
from lorimer.families._layout import Held, Layout
from lorimer.formats.safe_io import open_safetensors, read_json, read_safetensors_header
from lorimer.tasks._diffusers_folder import (
    load_network,
    load_scheduler,
    load_tokenizer,
    may_be_left_out,
    quiet,
    weight_files,
)

Contents = Mapping[str, tuple[Held, ...]]  # key in a file -> the parameters of one network that it holds
_LEVELS = Layout(("",), level="text_model.")  # what older transformers kept before the names of CLIP's layers

_GIVE_CONFIGS = "give its configs, laid out as diffusers does, by model: {path: ..., config: FOLDER}"


class ModelPart(Protocol):
    """A part of a model, not loaded yet."""

    def load(self, dtype: torch.dtype) -> Any:
        """The network in a precision, the tokenizer or the scheduler."""


@dataclass(frozen=True)
class FolderPart:
    """A part that is a folder of its own."""

    folder: Path
    part: Part

    def load(self, dtype: torch.dtype) -> Any:
        """See `ModelPart`."""
        with quiet():
            if self.part.kind == "tokenizer":
                return load_tokenizer(self.folder, self.part)
            if self.part.kind == "scheduler":
                return load_scheduler(self.folder)
            return load_network(self.folder, self.part, dtype)

    @property
    def config(self) -> Mapping[str, Any]:
        """The network's."""
        config: Mapping[str, Any] = read_json(self.folder / "config.json")
        return config

    def files(self) -> list[Path]:
        """The network's weight files."""
        assert self.part.weight_stem is not None
        return weight_files(self.folder, self.part.weight_stem)

    def skeleton(self) -> nn.Module:
        """The network without values."""
        return skeleton_of(self.part, self.config)

    def contents(self) -> dict[Path, Contents]:
        """What each of its weight files holds."""
        shapes = shapes_of(self.skeleton())
        known = {**_LEVELS.held(shapes), **Layout(("",)).held(shapes)}
        found: dict[Path, Contents] = {}
        for file in self.files():
            keys = read_safetensors_header(file).tensors
            found[file] = {key: known[key] for key in keys if key in known}
        return found


@dataclass(frozen=True)
class CheckpointPart:
    """A network whose tensors lie in a checkpoint file.

    Attributes:
        held: what the file's tensors hold of it.
    """

    file: Path
    part: Part
    config: Mapping[str, Any]
    held: Contents

    def load(self, dtype: torch.dtype) -> nn.Module:
        """See `ModelPart`.

        Raises:
            FileFormatError: a tensor has another shape than the network needs, or holds NaN or infinity.
        """
        with _empty_weights(), quiet():
            network: Any = _constructed(self.part, self.config)
        values = {}
        kept_wide = getattr(network, "_keep_in_fp32_modules", None) or ()
        with open_safetensors(self.file) as file:
            for key, held in self.held.items():
                tensor = file.read(key)
                for each in held:
                    wide = dtype == torch.float16 and any(name in each.name.split(".") for name in kept_wide)
                    value = _read(self.file, key, each, tensor)
                    values[each.name] = value.to(torch.float32 if wide else dtype, copy=len(held) > 1)
        network.load_state_dict(values, strict=False, assign=True)
        if hasattr(network, "tie_weights"):
            network.tie_weights()
        loaded: nn.Module = network.eval()
        return loaded

    def files(self) -> list[Path]:
        """The file."""
        return [self.file]

    def skeleton(self) -> nn.Module:
        """The network without values."""
        return skeleton_of(self.part, self.config)

    def contents(self) -> dict[Path, Contents]:
        """What the file holds of it."""
        return {self.file: self.held}


NetworkPart = FolderPart | CheckpointPart


@dataclass(frozen=True)
class MadeTokenizer:
    """CLIP's tokenizer, made of its merges."""

    options: Mapping[str, Any]

    def load(self, dtype: torch.dtype) -> Any:
        """See `ModelPart`."""
        from transformers import CLIPTokenizer

        merges = clip_merges()
        marks = {"bos_token": START, "eos_token": END, "unk_token": END}
        told = {name: value for name, value in self.options.items() if name != "tokenizer_class"}
        return CLIPTokenizer(vocab=clip_vocabulary(merges), merges=merges, **{**marks, **told})


@dataclass(frozen=True)
class SetScheduler:
    """The sampler in `folder` with other values for some fields of its config."""

    folder: Path
    values: Mapping[str, Any] = field(default_factory=dict)

    def load(self, dtype: torch.dtype) -> Any:
        """See `ModelPart`."""
        scheduler = load_scheduler(self.folder)
        return type(scheduler).from_config(scheduler.config, **self.values)


def skeleton_of(part: Part, config: Mapping[str, Any]) -> nn.Module:
    """A network with this config and no values.

    Raises:
        FileFormatError: the config is not one of its class.
    """
    with torch.device("meta"), quiet():
        return _constructed(part, config)


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that a network's files hold."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def checkpoint_part(
    file: Path, part: Part, config: Mapping[str, Any], layouts: tuple[Layout, ...]
) -> CheckpointPart | None:
    """The network of this config in a file, in whichever of the layouts the file has; None where it is not
    there at all.

    Raises:
        FileFormatError: some of it is missing.
    """
    keys = read_safetensors_header(file).tensors.keys()
    shapes = shapes_of(skeleton_of(part, config))
    count, held, lacking = 0, dict[str, tuple[Held, ...]](), list[str]()
    for layout in layouts:
        native = layout.held(shapes)
        prefix, found = layout.prefix_in(keys, native)
        if found > count:
            count = found
            held = {prefix + key: each for key, each in native.items() if prefix + key in keys}
            lacking = [prefix + key for key in native if prefix + key not in keys]
    lacking = [key for key in lacking if not may_be_left_out(key)]
    if count == 0:
        return None
    if lacking:
        shown = "\n  ".join(sorted(lacking)[:10])
        raise FileFormatError(
            f"{file}: {len(lacking)} tensors of its {part.cls} are missing:\n  {shown}\n"
            f"It is broken, or a model of another size: {_GIVE_CONFIGS}"
        )
    return CheckpointPart(file, part, config, held)


def _read(file: Path, key: str, held: Held, tensor: torch.Tensor) -> torch.Tensor:
    try:
        return held.read(tensor)
    except ValueError as error:
        raise FileFormatError(f"{file}: {key!r} {error}. If its size is meant: {_GIVE_CONFIGS}") from error


def _constructed(part: Part, config: Mapping[str, Any]) -> nn.Module:
    cls: Any = getattr(importlib.import_module(part.library), part.cls)
    try:
        if part.library == "diffusers":
            network: nn.Module = cls.from_config(dict(config))
        else:
            network = cls(cls.config_class.from_dict(dict(config)))
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(f"the config of a {part.cls} is broken: {error}") from error
    return network


@contextmanager
def _empty_weights() -> Iterator[None]:
    """Within this context new parameters take no memory; buffers, which are computed, do."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield
