"""From what a person names on the command line to a model. Commands import this file when they run, since
it imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lorimer.errors import FileFormatError, MissingDependencyError, UsageError
from lorimer.formats.safe_io import read_json
from lorimer.tasks._diffusion import load_diffusion


def load_model(name: str) -> nn.Module:
    """A picture model ("embedded", or a folder in diffusers' layout) or a folder in transformers' layout.

    Raises:
        UsageError: it is neither.
        FileFormatError: it is broken, or its config names no class of transformers.
        MissingDependencyError: the package that it needs is not installed.
    """
    folder = Path(name).expanduser()
    if name == "embedded" or (folder / "unet").is_dir():
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
