"""Reading the parts of a picture model from a folder in diffusers' layout, or from the hub.

    folder/unet/          config.json, diffusion_pytorch_model.safetensors
    folder/text_encoder/  config.json, model.safetensors
    folder/vae/           config.json, diffusion_pytorch_model.safetensors
    folder/tokenizer/     tokenizer_config.json and the vocabulary
    folder/scheduler/     scheduler_config.json

Which parts there are, and their classes, is the family's to say, whatever a config names. Safetensors
only: other weight files can run code.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Container, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorimer import registry
from lorimer.errors import FileFormatError, MissingDependencyError, UsageError
from lorimer.families._base import Family, Part
from lorimer.formats.safe_io import read_json, read_safetensors_header

# What the libraries raise, undocumented, for files that are broken or of another kind.
_BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError)
# Stored by older transformers in CLIP's weights, computed by newer ones.
_HARMLESS_KEYS = ("position_ids",)
# Weights that share their values with others, which files may leave out.
_TIED_KEYS = ("encoder.embed_tokens.weight", "lm_head.weight")


def require_picture_packages() -> None:
    """Raise `MissingDependencyError` unless diffusers, transformers and Pillow can be imported."""
    try:
        for package in ("diffusers", "transformers", "PIL"):
            importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f'picture models need the package {error.name}: pip install "lorimer[pictures]"'
        ) from error


def family_of_folder(folder: Path) -> type[Family]:
    """The family of the model in `folder`, told by the configs of its networks.

    Raises:
        FileFormatError: no family has such a model.
    """
    configs = {path.parent.name: read_json(path) for path in folder.glob("*/config.json")}
    return family_of(configs, str(folder))


def family_of(configs: dict[str, Any], where: str) -> type[Family]:
    """The one family that says it fits a model with these configs; see `Family.fits`.

    Raises:
        FileFormatError: there is none.
    """
    families: dict[str, type[Family]] = registry.all_of("family")
    fitting = [family for family in families.values() if family.fits(configs)]
    if len(fitting) == 1:
        return fitting[0]
    known = "; ".join(f"{name} ({family.description})" for name, family in families.items())
    found = ", ".join(f"{part} is {config.get('_class_name')}" for part, config in configs.items())
    raise FileFormatError(
        f"{where}: is no picture model of a known family"
        + (f" ({found})" if found else ": no part of it, such as unet/config.json, is there")
        + f".\nKnown families: {known}"
    )


def require_parts(folder: Path, family: type[Family], without: Container[str] = ()) -> None:
    """Raise `FileFormatError` that names every part that `folder` lacks, but for those in `without`."""
    problems = []
    for name, part in family.parts.items():
        if name in without or (part.optional and not (folder / name).is_dir()):
            continue
        if not (folder / name / part.config_file).is_file():
            problems.append(f"{name}/{part.config_file} is missing")
        elif part.weight_stem and not weight_files(folder / name, part.weight_stem):
            only_pickles = any((folder / name).glob("*.bin"))
            reason = "holds only .bin files, which can run code when loaded" if only_pickles else "is missing"
            problems.append(f"{name}/{part.weight_stem}.safetensors {reason}")
    if problems:
        raise FileFormatError(
            f"{folder} is no folder of a {family.pipeline} in safetensors:\n  " + "\n  ".join(problems)
            + "\nDownload the missing parts, or write the folder anew with pipeline.save_pretrained(folder)"
        )  # fmt: skip


def pipeline_settings(folder: Path, family: type[Family]) -> dict[str, Any]:
    """What `folder` says of the settings that the family's pipeline takes."""
    index = folder / "model_index.json"
    told = read_json(index) if index.is_file() else {}
    return {name: told[name] for name in family.pipeline_settings if name in told}


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a part, in order of their shards."""
    return sorted(folder.glob(f"{stem}*.safetensors"))


def load_network(folder: Path, part: Part, dtype: torch.dtype) -> nn.Module:
    """A network with every one of its weights, or `FileFormatError`."""
    assert part.weight_stem is not None
    cls = getattr(importlib.import_module(part.library), part.cls)
    files = weight_files(folder, part.weight_stem)
    for file in files:
        read_safetensors_header(file)
    plain = any(".fp16." not in file.name for file in files)
    precision = {"dtype" if part.library == "transformers" else "torch_dtype": dtype}
    try:
        loaded, info = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=None if plain else "fp16",
            output_loading_info=True,
            **precision,
        )
    except _BROKEN as error:
        raise FileFormatError(f"{folder}: cannot be loaded as {part.cls}: {error}") from error
    require_whole(loaded, info, str(folder))
    network: nn.Module = loaded
    return network


def require_whole(loaded: nn.Module, info: dict[str, Any], where: str) -> None:
    """Raise `FileFormatError` unless the files held each of the network's weights, finite, and no others."""
    problems = [f"{key} is missing" for key in info["missing_keys"] if not may_be_left_out(key)]
    problems += [f"{key} is not known" for key in info["unexpected_keys"] if not key.endswith(_HARMLESS_KEYS)]
    problems += [f"{key[0]} has the wrong shape" for key in info["mismatched_keys"]]
    if not problems:  # weights that are missing have no values to look at
        problems = [f"{key} holds NaN or infinity" for key in not_finite(loaded)]
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        raise FileFormatError(
            f"{where}: {len(problems)} weights are wrong for its config.json:\n  {shown}\n"
            "The files are of different models or broken; download the folder anew"
        )


def may_be_left_out(key: str) -> bool:
    """Whether files may lack a weight, since it shares its values with another."""
    return key.endswith(_TIED_KEYS)


def not_finite(network: nn.Module) -> Iterable[str]:
    """Names of tensors that hold NaN or infinity."""
    values = network.state_dict().items()
    return (key for key, value in values if value.is_floating_point() and not torch.isfinite(value).all())


def load_tokenizer(folder: Path, part: Part) -> Any:
    """The tokenizer in `folder`, or `FileFormatError`."""
    import transformers

    try:
        return getattr(transformers, part.cls).from_pretrained(folder, local_files_only=True)
    except _BROKEN as error:
        raise FileFormatError(f"{folder}: cannot be loaded as {part.cls}: {error}") from error


def load_scheduler(folder: Path) -> Any:
    """The sampler that the config in `folder` names, or `FileFormatError`."""
    import diffusers

    try:
        name = str(diffusers.DDPMScheduler.load_config(folder).get("_class_name"))
    except _BROKEN as error:
        raise FileFormatError(f"{folder}: its config cannot be read: {error}") from error
    cls: Any = getattr(diffusers, name, None)
    known = inspect.isclass(cls) and issubclass(cls, diffusers.SchedulerMixin)
    if not known:
        raise FileFormatError(f"{folder}: diffusers has no scheduler called {name!r}")
    return cls.from_pretrained(folder)


def require_process(scheduler: Any, family: type[Family], where: str) -> None:
    """Raise `FileFormatError` unless the sampler is one for what the family's networks predict."""
    predicts = getattr(scheduler.config, "prediction_type", None)
    if family.process == "diffusion" and predicts not in ("epsilon", "v_prediction"):
        raise FileFormatError(
            f"{where}: {type(scheduler).__name__} is not for a model that predicts noise or velocity; "
            "prediction_type must be epsilon or v_prediction"
        )
    if family.process == "flow" and "FlowMatch" not in type(scheduler).__name__:
        raise FileFormatError(
            f"{where}: {type(scheduler).__name__} is not for a flow-matching model; "
            "FlowMatchEulerDiscreteScheduler is"
        )


def folder_from_hub(name: str) -> Path:
    """The folder of the hub model `name` on this machine, fetched where it is not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UsageError(f"model {name!r}: there is no such folder. Check the path, or use model=embedded")
    try:
        return Path(snapshot_download(name, allow_patterns=_hub_files()))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(
            f"model {name!r} is no folder here, and the hub did not give it ({reason}). Check the name and "
            "the connection, log in with `hf auth login` where the model asks for it, or use model=embedded"
        ) from error


def _hub_files() -> list[str]:
    """What to fetch: the parts that any family knows, weights in safetensors, no half-precision doubles."""
    patterns = {"model_index.json"}
    for family in registry.all_of("family").values():
        for name, part in family.parts.items():
            patterns |= {f"{name}/*.{ending}" for ending in ("json", "txt", "model", "jinja")}
            if part.weight_stem:
                stem = f"{name}/{part.weight_stem}"
                patterns |= {f"{stem}.safetensors", f"{stem}-0*.safetensors"}
    return sorted(patterns)


def quiet() -> ExitStack:
    """Within this context diffusers and transformers log errors alone, draw no progress bars, and do not tell
    that diffusers uses what it means to drop."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    for library in (diffusers_logging, transformers_logging):
        stack.callback(library.set_verbosity, library.get_verbosity())
        library.set_verbosity_error()
        if library.is_progress_bar_enabled():
            stack.callback(library.enable_progress_bar)
            library.disable_progress_bar()
    return stack
