"""From what a recipe names to a language model and its tokenizer, by transformers.

smollm2, minilm     the weights in an installed package, see `_packaged_weights.py`
x.gguf              dequantised once; what comes out is kept as an ordinary folder in the cache
a folder, a name    as transformers reads them, from disk or from the hub
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lorimer.errors import FileFormatError, MissingDependencyError, UsageError
from lorimer.tasks._packaged_weights import NAMED, made_once, packaged


def model_place(name: str) -> str:
    """What transformers can load: a folder on this machine, or a name on the hub.

    Raises:
        MissingDependencyError: `name` stands for a package that is not installed.
        UsageError: `name` looks like a path, and there is nothing.
        FileFormatError: a `.gguf` that cannot be read.
    """
    path = packaged(name) if name in NAMED else Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"model: there is no file {path}")
        return str(_dequantised(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"model: {path} has no config.json; give a folder in transformers' layout")
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"model: {name} is neither a model's folder, a .gguf file nor a name on the hub")
    return name


def load_tokenizer(name: str) -> Any:
    """The tokenizer of the model that a recipe names so. It can pad.

    Raises:
        as `model_place`; FileFormatError: there is none that transformers can read.
    """
    from transformers import AutoTokenizer

    place = model_place(name)
    with told_as_ours(name, "tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(place)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_causal(name: str, dtype: torch.dtype | Literal["auto"] = torch.float32) -> tuple[nn.Module, Any]:
    """A causal language model in evaluation mode on the CPU, and its tokenizer.

    Raises:
        as `model_place`; FileFormatError: it is no causal language model, or lacks weights.
    """
    from transformers import AutoModelForCausalLM

    return load_pretrained(AutoModelForCausalLM, name, dtype)[0], load_tokenizer(name)


def load_pretrained(
    auto: Any,
    name: str,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    may_lack: str = "",
    **options: Any,
) -> tuple[nn.Module, list[str]]:
    """A model by one of transformers' `AutoModelFor...` classes, in evaluation mode on the CPU, and which of
    its weights are new.

    Args:
        dtype: of the weights; "auto" is that of the files.
        may_lack: a regular expression for weights that a file may lack, such as those of a new head.
        options: for `from_pretrained`.

    Raises:
        as `model_place`; FileFormatError: it is no such model, or lacks weights, which would be random.
    """
    place = model_place(name)
    with told_as_ours(name, "model"):
        model, told = auto.from_pretrained(
            place, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    new = sorted({*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])})
    lacking = [key for key in new if not (may_lack and re.search(may_lack, key))]
    if lacking:
        raise FileFormatError(f"{name}: lacks weights such as {lacking[0]!r}, which would be random")
    return model.eval(), new


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """transformers keeps its bars, and its table of keys, which we check, to itself."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def told_as_ours(name: str, what: str) -> Iterator[None]:
    """Errors of transformers as ours."""
    try:
        with quietly():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines()[:1]
        raise FileFormatError(f"{name}: transformers cannot load its {what}: {' '.join(first)}") from error


def _dequantised(file: Path) -> Path:
    """The folder that holds what transformers makes of a `.gguf` file: the same values, in float32."""

    def make(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if find_spec("gguf") is None:
            raise MissingDependencyError(f'{file} needs the package gguf: pip install "lorimer[models]"')
        with told_as_ours(str(file), "weights"):
            model: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        _forget_quantisation(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return made_once(file, f"transformers {version('transformers')}", make)


def _forget_quantisation(model: Any) -> None:
    """transformers marks what it read from a GGUF as quantised, though it is not, and would not save."""
    model.hf_quantizer = None
    model.is_quantized = False
    for holder, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)


def within_positions(data: Any, model: Any) -> tuple[Any, list[str]]:
    """A recipe's `data` with a `max_length` that the model has positions for; a line where that is less."""
    base = model.base_model
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    table: Any = getattr(getattr(base, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if isinstance(known, int) and padding is not None:
        known -= padding + 1  # RoBERTa counts from behind its padding
    if not isinstance(known, int) or known < 1 or data.max_length <= known:
        return data, []
    return data.model_copy(update={"max_length": known}), [
        f"{type(model).__name__} has positions for {known} tokens, so that is data.max_length"
    ]
