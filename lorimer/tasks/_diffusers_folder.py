"""Reading the parts of a diffusion model from a folder in diffusers' layout, or from the hub.

    folder/unet/          config.json, diffusion_pytorch_model.safetensors
    folder/text_encoder/  config.json, model.safetensors
    folder/vae/           config.json, diffusion_pytorch_model.safetensors
    folder/tokenizer/     tokenizer_config.json and the vocabulary
    folder/scheduler/     scheduler_config.json

Safetensors only: other weight files can run code. The classes are fixed, whatever a config names.
"""

from __future__ import annotations

import importlib
import inspect
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from lorimer.errors import FileFormatError, MissingDependencyError, UsageError
from lorimer.formats.safe_io import read_safetensors_header

# part -> (file that must be there, name of its weight file without ending, or None)
_PARTS = {
    "unet": ("config.json", "diffusion_pytorch_model"),
    "text_encoder": ("config.json", "model"),
    "vae": ("config.json", "diffusion_pytorch_model"),
    "tokenizer": ("tokenizer_config.json", None),
    "scheduler": ("scheduler_config.json", None),
}
_HUB_FILES = [
    "model_index.json",
    *(f"{part}/*.{ending}" for part in _PARTS for ending in ("json", "txt")),
    *(f"{part}/{stem}{tail}" for part, (_, stem) in _PARTS.items() if stem for tail in
      (".safetensors", "-0*.safetensors")),
]  # fmt: skip
# What the libraries raise, undocumented, for files that are broken or of another kind.
_BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError)
# Stored by older transformers in CLIP's weights, computed by newer ones.
_HARMLESS_KEYS = ("position_ids",)


def require_picture_packages() -> None:
    """Raise `MissingDependencyError` unless diffusers, transformers and Pillow can be imported."""
    try:
        for package in ("diffusers", "transformers", "PIL"):
            importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f'picture models need the package {error.name}: pip install "lorimer[pictures]"'
        ) from error


def require_parts(folder: Path) -> None:
    """Raise `FileFormatError` that names every part that `folder` lacks."""
    problems = []
    for part, (config, weights) in _PARTS.items():
        if not (folder / part / config).is_file():
            problems.append(f"{part}/{config} is missing")
        elif weights and not _weight_files(folder / part, weights):
            only_pickles = any((folder / part).glob("*.bin"))
            reason = "holds only .bin files, which can run code when loaded" if only_pickles else "is missing"
            problems.append(f"{part}/{weights}.safetensors {reason}")
    if problems:
        raise FileFormatError(
            f"{folder} is no folder of a StableDiffusionPipeline in safetensors:\n  " + "\n  ".join(problems)
            + "\nDownload the missing parts, or write the folder anew with pipeline.save_pretrained(folder)"
        )  # fmt: skip


def _weight_files(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}*.safetensors"))


def load_weights(cls: Any, folder: Path, part: str, **options: Any) -> Any:
    """A part with every one of its weights, or `FileFormatError`."""
    stem = _PARTS[part][1]
    assert stem is not None
    files = _weight_files(folder / part, stem)
    for file in files:
        read_safetensors_header(file)
    plain = any(".fp16." not in file.name for file in files)
    try:
        loaded, info = cls.from_pretrained(
            folder / part,
            use_safetensors=True,
            variant=None if plain else "fp16",
            output_loading_info=True,
            **options,
        )
    except _BROKEN as error:
        raise FileFormatError(f"{folder / part}: cannot be loaded as {cls.__name__}: {error}") from error
    problems = [f"{key} is missing" for key in info["missing_keys"]]
    problems += [f"{key} is not known" for key in info["unexpected_keys"] if not key.endswith(_HARMLESS_KEYS)]
    problems += [f"{key[0]} has the wrong shape" for key in info["mismatched_keys"]]
    if not problems:  # weights that are missing have no values to look at
        values = loaded.state_dict().items()
        problems = [
            f"{key} holds NaN or infinity" for key, value in values if not torch.isfinite(value).all()
        ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        raise FileFormatError(
            f"{folder / part}: {len(problems)} weights are wrong for its config.json:\n  {shown}\n"
            "The files are of different models or broken; download the folder anew"
        )
    return loaded


def load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder / "tokenizer")
    except _BROKEN as error:
        raise FileFormatError(
            f"{folder / 'tokenizer'}: cannot be loaded as CLIPTokenizer: {error}"
        ) from error


def load_scheduler(folder: Path) -> Any:
    import diffusers

    try:
        name = str(diffusers.DDPMScheduler.load_config(folder / "scheduler").get("_class_name"))
    except _BROKEN as error:
        raise FileFormatError(f"{folder / 'scheduler'}: its config cannot be read: {error}") from error
    cls: Any = getattr(diffusers, name, None)
    known = inspect.isclass(cls) and issubclass(cls, diffusers.SchedulerMixin)
    if not known:
        raise FileFormatError(f"{folder / 'scheduler'}: diffusers has no scheduler called {name!r}")
    scheduler = cls.from_pretrained(folder / "scheduler")
    if getattr(scheduler.config, "prediction_type", None) not in ("epsilon", "v_prediction"):
        raise FileFormatError(
            f"{folder / 'scheduler'}: {name} is not for a model that predicts noise or velocity; "
            "prediction_type must be epsilon or v_prediction"
        )
    return scheduler


def folder_from_hub(name: str) -> Path:
    """The folder of the hub model `name` on this machine, fetched where it is not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UsageError(f"model {name!r}: there is no such folder. Check the path, or use model=embedded")
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(
            f"model {name!r} is no folder here, and the hub did not give it ({reason}). Check the name and "
            "the connection, log in with `hf auth login` where the model asks for it, or use model=embedded"
        ) from error


def quiet() -> ExitStack:
    """Within this context diffusers and transformers log errors alone and draw no progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    stack = ExitStack()
    for library in (diffusers_logging, transformers_logging):
        stack.callback(library.set_verbosity, library.get_verbosity())
        library.set_verbosity_error()
        if library.is_progress_bar_enabled():
            stack.callback(library.enable_progress_bar)
            library.disable_progress_bar()
    return stack
