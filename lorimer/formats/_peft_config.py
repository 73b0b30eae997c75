"""PEFT's config as plain data: which rank and alpha hold for which layer, written and read as PEFT means it.

Used by PEFT folders (`adapter_config.json`) and by diffusers files (header entry `lora_adapter_metadata`).
PEFT takes a pattern's key for a regular expression that may match the end of a path:
`re.match(rf"(.*\\.)?({key})$", path)`, the first match counts (peft.utils.other.get_pattern_key).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lorimer import registry
from lorimer.adapters._base import Method
from lorimer.adapters._state import LayerState
from lorimer.errors import FileFormatError
from lorimer.formats._checks import checked_alpha, checked_rank, most_common, plain_number, shown

# Fields that do not change what a finished adapter computes.
_HARMLESS = """
    alpha alpha_pattern auto_mapping base_model_name_or_path ensure_weight_tying eva_config exclude_modules
    fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout
    megatron_core modules_to_save peft_type peft_version qalora_group_size r rank_pattern revision
    runtime_config target_modules task_type trainable_token_indices use_rslora
"""
# Initialisers that leave the base model's weights alone; others move a part of them into the adapter.
_BASE_KEEPING_INITIALISERS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_MAX_KEYS = 5000
_MAX_LENGTH = 1000  # of a key or a path
_MAX_STEPS = 2e9  # of matching all keys against all paths; some seconds


def peft_config(
    method: type[Method],
    layers: Mapping[str, LayerState],
    own: Mapping[str, Any],
    *,
    optional_prefix: str = "",
) -> dict[str, Any]:
    """The config that makes PEFT build `layers` (path within the model -> state) and no others.

    Args:
        own: the method's config.
        optional_prefix: start of the paths that the reading program's model may or may not have.

    Raises:
        FileFormatError: PEFT has no such method.
    """
    if method.peft_config is None:
        raise FileFormatError(
            f"PEFT has no method like {method.name!r}. Use format 'lorimer', which holds any adapter"
        )
    rank = most_common(layer.rank for layer in layers.values())
    alpha = most_common(layer.alpha for layer in layers.values())
    head = f"(?:{re.escape(optional_prefix)})?" if optional_prefix else ""

    def exact(path: str) -> str:
        return f"^{head}{re.escape(path)}"

    targets = _target_modules(layers, head)
    told = {**method.peft_config, "target_modules": targets, **method.peft_options(own, targets)}
    if not method.ranked:
        return told
    ranks = {exact(path): own.rank for path, own in layers.items() if own.rank != rank}
    alphas = {exact(path): plain_number(own.alpha) for path, own in layers.items() if own.alpha != alpha}
    fields = {
        **told,
        "r": rank,
        method.peft_alpha: plain_number(alpha),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    unknown = set() if method.peft_alpha else {"", "alpha_pattern", *([] if ranks else ["rank_pattern"])}
    return {name: value for name, value in fields.items() if name not in unknown}


def read_peft_config(
    config: Mapping[str, Any],
    method: type[Method],
    ranks: Mapping[str, int | None],
    where: str,
    *,
    optional_prefix: str = "",
) -> dict[str, tuple[int, float]]:
    """Path -> (rank, alpha) for every path in `ranks`, whose values are the ranks that tensors show.

    Raises:
        FileFormatError: the config speaks of another method or of something that lorimer cannot hold, a
            value is of the wrong kind, or a rank differs from that of the tensors.
    """
    _refuse_unsupported(config, method, where)
    if not method.ranked:
        return dict.fromkeys(ranks, (1, 1.0))
    default_rank = checked_rank(config.get("r", 8), f"{where}: r")
    default_alpha = checked_alpha(config.get(method.peft_alpha, 8), f"{where}: {method.peft_alpha}")
    rank_pattern = _pattern(config, "rank_pattern", ranks, where)
    alpha_pattern = _pattern(config, "alpha_pattern", ranks, where)
    settled = {}
    for path, shape_rank in ranks.items():
        names = tuple(dict.fromkeys((path, optional_prefix + path)))
        rank = checked_rank(_lookup(rank_pattern, names, default_rank), f"{where}: rank of {path!r}")
        alpha = checked_alpha(_lookup(alpha_pattern, names, default_alpha), f"{where}: alpha of {path!r}")
        if shape_rank is not None and rank != shape_rank:
            raise FileFormatError(
                f"{where}: says rank {rank} for {path!r}, whose tensors are of rank {shape_rank}"
            )
        if not method.peft_alpha:
            alpha = float(rank)
        # rsLoRA scales by alpha / sqrt(rank) (arXiv 2312.03732); as plain LoRA that is another alpha.
        settled[path] = (rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha)
    return settled


def method_of(config: Mapping[str, Any], where: str) -> str:
    """The name of the method that a PEFT config speaks of.

    Raises:
        FileFormatError: no installed method is of that kind.
    """
    fitting = {
        name: plugin.peft_config
        for name, plugin in registry.all_of("method").items()
        if plugin.peft_config and all(config.get(key) == value for key, value in plugin.peft_config.items())
    }
    if not fitting:
        raise FileFormatError(f"{where}: no known method is PEFT's {str(config.get('peft_type'))[:60]!r}")
    return max(fitting, key=lambda name: len(fitting[name]))


def _target_modules(layers: Iterable[str], head: str) -> list[str] | str:
    """Full paths, which every program understands. A path without a dot would also match the end of any
    other (`fc` matches `decoder.fc`), so such adapters get one exact regular expression."""
    paths = list(layers)
    if all("." in path for path in paths):
        return paths
    return f"^{head}(?:{'|'.join(re.escape(path) for path in paths)})$"


def _refuse_unsupported(config: Mapping[str, Any], method: type[Method], where: str) -> None:
    if config.get("bias", "none") not in ("none", "lora_only", "all"):
        raise FileFormatError(f"{where}: bias must be none, lora_only or all, not {config['bias']!r:.40}")
    if config.get("init_lora_weights", True) not in _BASE_KEEPING_INITIALISERS:
        raise FileFormatError(
            f"{where}: init_lora_weights = {config['init_lora_weights']!r:.40}: its tensors belong to base "
            "weights that the initialiser changed. Save it anew with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    own = set(method.peft_config or ()) | method.peft_told_by_tensors | {"bias"}
    # A newer PEFT's fields are fine where they are switched off.
    unsupported = {key for key, value in config.items() if value and key not in own.union(_HARMLESS.split())}
    if unsupported:
        raise FileFormatError(f"{where}: lorimer does not support its {shown(unsupported)}; merge it in PEFT")


def _pattern(
    config: Mapping[str, Any], field: str, paths: Collection[str], where: str
) -> dict[re.Pattern[str], Any]:
    """A pattern field with its keys compiled; those that could take for ever on `paths` are refused."""
    entries = config.get(field) or {}
    if not isinstance(entries, dict):
        raise FileFormatError(f"{where}: {field} must be a mapping")
    longest = max(map(len, paths))
    if len(entries) > _MAX_KEYS or longest > _MAX_LENGTH:
        raise FileFormatError(f"{where}: {field} has too many keys, or a layer's path is too long")
    compiled, steps = {}, 0.0
    for key, value in entries.items():
        steps += len(paths) * _steps(key, longest)
        if steps > _MAX_STEPS:
            raise FileFormatError(f"{where}: {field}: {key[:60]!r} is too complicated a pattern")
        try:
            compiled[re.compile(rf"(.*\.)?({key})$")] = value
        except (re.error, OverflowError, RecursionError) as error:
            raise FileFormatError(f"{where}: {field}: {key[:60]!r} is not a pattern: {error}") from error
    return compiled


def _steps(key: str, length: int) -> float:
    """How many steps matching a regular expression on a path of `length` may take, at worst."""
    bare = re.sub(r"\(\?[:=!]", "(", re.sub(r"\\.", "", key))
    if len(key) > _MAX_LENGTH or re.search(r"\)\s*[*+{]", bare):  # a repeated group can be exponential
        return math.inf
    repeats, options, choices = len(re.findall(r"[*+{]", bare)), bare.count("?"), bare.count("|")
    groups = bare.count("(") + 1
    try:
        return float((length + 1) ** (repeats + 1) * 2**options * (1 + choices) ** groups)
    except OverflowError:
        return math.inf


def _lookup(pattern: Mapping[re.Pattern[str], Any], names: Sequence[str], default: Any) -> Any:
    """The value of the first key that matches one of a layer's names."""
    for expression, value in pattern.items():
        if any(expression.match(name) for name in names):
            return value
    return default
