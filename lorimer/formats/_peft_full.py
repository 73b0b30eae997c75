"""What was trained in full, as PEFT's folder keeps it beside the adapter.

config                                    key
modules_to_save: [classifier]             classifier.weight, classifier.bias
bias: lora_only                           <adapted layer>.base_layer.bias
trainable_token_indices: {emb: [3, 5]}    emb.token_adapter.trainable_tokens_delta
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from lorimer.adapters._state import ParameterState
from lorimer.errors import FileFormatError

_BIAS = ".base_layer.bias"
_ROWS = ".token_adapter.trainable_tokens_delta"


def full_to_peft(
    full: Mapping[str, ParameterState], layers: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(keys and tensors, config fields) for parameters trained in full beside adapted `layers`.

    Raises:
        FileFormatError: PEFT would have to save a module that holds an adapted layer.
    """
    tensors: dict[str, Tensor] = {}
    modules: dict[str, None] = {}
    rows: dict[str, list[int]] = {}
    bias = "none"
    for name, parameter in full.items():
        module, _, own = name.rpartition(".")
        if parameter.rows is not None:
            tensors[module + _ROWS] = parameter.value
            rows[module] = list(parameter.rows)
        elif module in layers and own == "bias":
            tensors[module + _BIAS] = parameter.value
            bias = "lora_only"
        else:
            within = [layer for layer in layers if layer == module or layer.startswith(module + ".")]
            if within or not module:
                beside = repr(within[0]) if within else "the model"
                raise FileFormatError(
                    f"the peft format cannot hold {name!r} beside the adapter on {beside}: "
                    "PEFT saves whole modules. Use format 'lorimer', which holds any adapter"
                )
            tensors[name] = parameter.value
            modules[module] = None
    fields: dict[str, Any] = {"bias": bias, "modules_to_save": list(modules) or None}
    return tensors, {**fields, "trainable_token_indices": rows} if rows else fields


def full_from_peft(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str
) -> tuple[dict[str, ParameterState], dict[str, Tensor]]:
    """(parameters trained in full, the keys that are left) from a folder's tensors and config.

    Raises:
        FileFormatError: the config's fields are malformed, or a module that it says was saved is not there.
    """
    saved, indices = config.get("modules_to_save") or [], config.get("trainable_token_indices") or {}
    if not isinstance(saved, list) or not all(isinstance(each, str) and each for each in saved):
        raise FileFormatError(f"{where}: modules_to_save must be a list of names")
    if not isinstance(indices, list | dict):
        raise FileFormatError(
            f"{where}: trainable_token_indices must be a list, or a mapping of lists by name"
        )
    full: dict[str, ParameterState] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.endswith(_ROWS):
            module = key.removesuffix(_ROWS)
            full[f"{module}.weight"] = ParameterState(tensor, _rows_of(indices, module, tensor, where))
        elif key.endswith(_BIAS):
            full[f"{key.removesuffix(_BIAS)}.bias"] = ParameterState(tensor)
        elif _lies_in(key, saved) or (config.get("bias") == "all" and _is_bias(key)):
            full[key] = ParameterState(tensor)
        else:
            rest[key] = tensor
    for field, wanted in (("modules_to_save", saved), ("trainable_token_indices", list(indices))):
        if wanted and not full:
            raise FileFormatError(f"{where}: {field} names {wanted!r:.60}, of which the file holds no tensor")
    return full, rest


def _lies_in(key: str, modules: Collection[str]) -> bool:
    """Whether a parameter is in a module that one of the names is the end of, as PEFT matches them."""
    parts = key.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts))]
    return any(path == module or path.endswith(f".{module}") for module in modules for path in paths)


def _is_bias(key: str) -> bool:
    """Whether a key is a layer's own bias, not the one that LoRA adds."""
    return key.endswith(".bias") and ".lora_" not in key


def _rows_of(indices: Any, module: str, tensor: Tensor, where: str) -> tuple[int, ...]:
    if isinstance(indices, list):  # for the model's input embedding, whatever it is called
        indices = {module: indices}
    names = [name for name in indices if module == name or module.endswith(f".{name}")] if indices else []
    rows = indices[names[0]] if names else None
    if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
        raise FileFormatError(
            f"{where}: trainable_token_indices does not say which rows of {module!r} were trained"
        )
    if len(rows) != tensor.shape[0]:
        raise FileFormatError(f"{where}: {len(rows)} token indices for {tensor.shape[0]} rows of {module!r}")
    return tuple(rows)
