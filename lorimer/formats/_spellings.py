"""The keys of other programs in the one spelling that the kohya reader knows.

    "unet.<path>.to_q.lora.down.weight"                          older diffusers
    "text_encoder.<path>.q_proj.lora_linear_layer.down.weight"
    "<path>.attn1.processor.to_q_lora.down.weight"               the oldest
    "transformer.<path>.lora_down.weight"                        OneTrainer
    "double_blocks.0.img_attn.qkv.lora_A.weight"                 other trainers
    "transformer_blocks.0.attn.to_q.lora_down.weight"
    "base_model.model.<path>.lora_A.weight"                      PEFT's keys in a file without its config

all become "<beginning><path>.lora_down.weight", where the beginning is a component or "diffusion_model.".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lorimer import registry
from lorimer.errors import FileFormatError
from lorimer.families._names import FileNames
from lorimer.formats._bundle import PREFIX
from lorimer.formats._components import COMPONENTS

# What keys begin with.
BEGINNINGS = (
    "lora_unet_",
    "lora_te",
    "lora_transformer_",
    "lycoris_",
    "diffusion_model.",
    "text_encoders.",
    PREFIX,
)
# Where diffusers keeps ranks and alphas.
ALPHAS_ENTRY = "lora_adapter_metadata"
_DENOISER = "diffusion_model."
_PEFT = "base_model.model."
_COMPONENTS = tuple(f"{component}." for component in COMPONENTS)
# Other spellings of suffixes, one after the other.
_SUFFIXES = (
    (re.compile(r"\.lora_A(\.default)?\.weight$"), ".lora_down.weight"),
    (re.compile(r"\.lora_B(\.default)?\.weight$"), ".lora_up.weight"),
    (
        re.compile(r"\.self_attn\.to_(q|k|v|out)_lora\.(down|up)\.weight$"),
        r".self_attn.\1_proj.lora_\2.weight",
    ),
    (re.compile(r"(?:\.processor)?\.to_out_lora\.(down|up)\.weight$"), r".to_out.0.lora_\1.weight"),
    (re.compile(r"(?:\.processor)?\.(\w+)_lora\.(down|up)\.weight$"), r".\1.lora_\2.weight"),
    (re.compile(r"\.lora(?:_linear_layer)?\.(down|up)\.weight$"), r".lora_\1.weight"),
    (re.compile(r"\.lora_magnitude_vector(\.default)?(\.weight)?$"), ".dora_scale"),
)
# What is left of a key, its layer's name apart.
_SUFFIX = re.compile(r"\.(lora_(down|mid|up)\.weight|dora_scale|(hada|lokr)_\w+)$")
# Suffixes that today's diffusers writes behind its components.
_TODAYS = re.compile(r"\.(lora_[AB]\.weight|lora_magnitude_vector(\.weight)?)$")


def respelled(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors by the keys that kohya's and ComfyUI's files have; strangers keep theirs.

    Raises:
        FileFormatError: two keys mean one tensor.
    """
    families = _families()
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        key = _begun(_suffixed(key), families)
        if key in found:
            raise FileFormatError(f"{where}: holds {key!r} under two names")
        found[key] = tensor
    return found


def is_component_wise(keys: Iterable[str]) -> bool:
    """Whether all keys begin with a component, as diffusers writes them."""
    return all(":" not in key and key.startswith(_COMPONENTS) for key in keys)


def is_elsewhere_spelled(keys: Iterable[str]) -> bool:
    """Whether a key has a suffix that today's diffusers does not write."""
    return any(_SUFFIX.search(_suffixed(key)) and not _TODAYS.search(key) for key in keys)


def is_other_programs(path: Path, keys: Iterable[str]) -> bool:
    """Whether keys that begin in none of the usual ways are of an adapter whose layers a family has."""
    keys = list(keys)
    if (path.parent / "adapter_config.json").is_file() and path.name == "adapter_model.safetensors":
        return False  # one file of a PEFT folder, whose config must be read with it
    if is_component_wise(keys) and not is_elsewhere_spelled(keys):
        return False
    families = _families()
    spelled = (key for key in map(_suffixed, keys) if _SUFFIX.search(key))
    return any(_is_known(_SUFFIX.sub("", _begun(key, families)), families) for key in spelled)


def _suffixed(key: str) -> str:
    for pattern, suffix in _SUFFIXES:
        key = pattern.sub(suffix, key)
    return key


def _begun(key: str, families: Iterable[FileNames]) -> str:
    """`key` behind a usual beginning, where a family then knows its layer."""
    if key.startswith((*BEGINNINGS, *_COMPONENTS)):
        return key
    rest = key.removeprefix(_PEFT)
    whole = rest if rest.startswith((*BEGINNINGS, *_COMPONENTS)) else _DENOISER + rest
    return whole if _is_known(_SUFFIX.sub("", whole.removesuffix(".alpha")), families) else key


def _is_known(name: str, families: Iterable[FileNames]) -> bool:
    return any(names.places(name) for names in families)


def _families() -> list[FileNames]:
    return [plugin.kohya for plugin in registry.all_of("family").values()]
