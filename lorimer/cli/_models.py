"""From what a person names on the command line to a model. Commands import this file when they run, since
it imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lorimer.cli._stored import picture_files
from lorimer.errors import FileFormatError, MissingDependencyError, UsageError
from lorimer.formats.safe_io import read_json
from lorimer.ops._weights import Source
from lorimer.tasks._diffusion import load_diffusion
from lorimer.tasks._model_files import shown_name


@dataclass(frozen=True)
class Pair:
    """Two models to compare.

    Attributes:
        exclude: the parts of them that are left out.
        metadata: what is known of both.
    """

    base: Source
    tuned: Source
    exclude: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def compared(base: str, tuned: str, components: Sequence[str]) -> Pair:
    """Two models that are told apart: picture models in their files, others in memory.

    Args:
        components: the parts of picture models that are meant; all where there is none.

    Raises:
        UsageError: the two are of different families, or have no such component.
    """
    if not is_picture_model(base) or not is_picture_model(tuned):
        if components:
            raise UsageError("--component: only picture models have parts")
        return Pair(load_model(base), load_model(tuned))
    (before, one), (after, other) = picture_files(base), picture_files(tuned)
    if before.family is not after.family:
        raise UsageError(
            f"{base} is a {before.family.name} model and {tuned} a {after.family.name} model; there is no "
            "adapter from one to the other"
        )
    present = [name for name in before.family.adaptable() if name in before.networks]
    for name in components:
        if name not in present:
            raise UsageError(f"--component {name}: the model has {', '.join(present)}")
    exclude = tuple(name for name in present if components and name not in components)
    facts = {"family": before.family.name, "base_model": shown_name(base)}
    return Pair(one, other, exclude, facts)


def is_picture_model(name: str) -> bool:
    """Whether a picture model is meant: the embedded one, a file, a mapping, or a folder of parts."""
    place = Path(name).expanduser()
    parts = [*place.glob("unet/config.json"), *place.glob("transformer/config.json")]
    return name == "embedded" or name.startswith("{") or place.is_file() or bool(parts)


def load_model(name: str) -> nn.Module:
    """A picture model ("embedded", or a folder in diffusers' layout) or a folder in transformers' layout.

    Raises:
        UsageError: it is neither.
        FileFormatError: it is broken, or its config names no class of transformers.
        MissingDependencyError: the package that it needs is not installed.
    """
    folder = Path(name).expanduser()
    if is_picture_model(name):
        return load_diffusion(name)
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{name}: not a model's folder, which holds config.json (transformers) or unet/ (diffusers)"
        )
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f'{name} needs the package transformers: pip install "lorimer[pictures]"'
        ) from error
    named = read_json(folder / "config.json").get("architectures") or [""]
    cls: Any = getattr(transformers, str(named[0]), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise FileFormatError(f"{folder / 'config.json'}: names no model of transformers: {named!r}")
    try:
        load: Any = cls.from_pretrained  # type: ignore[attr-defined]
        model, told = load(
            folder, dtype="auto", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{name}: transformers cannot load it: {error}") from error
    if told["missing_keys"]:  # they would be random
        raise FileFormatError(f"{name}: lacks weights such as {min(told['missing_keys'])!r}")
    loaded: nn.Module = model
    return loaded
