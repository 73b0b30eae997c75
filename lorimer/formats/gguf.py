"""GGUF: an adapter that llama.cpp, and what is built on it, loads beside a GGUF model.

    blk.<n>.attn_q.weight.lora_a (rank, in), blk.<n>.attn_q.weight.lora_b (out, rank)
    general.type = adapter, adapter.type = lora, general.architecture, adapter.lora.alpha

One alpha stands for all layers, and each layer's scale is it over the layer's rank. Where layers differ, the
commonest stands in the file, and the B of others is multiplied by what they have more or less.

The base must be known: `architecture` (transformers' model_type), `attention_heads` and `key_value_heads`
stand in the adapter's metadata, where the task text-generation writes them, and `tied_head` where it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorimer.adapters._state import AdapterState, LayerState
from lorimer.errors import FileFormatError, MissingDependencyError
from lorimer.formats._base import Format
from lorimer.formats._checks import MAX_BYTES, checked_alpha, checked_rank, most_common, require_suffix, shown
from lorimer.formats._dialects import require_nothing_in_full, require_writable
from lorimer.formats._gguf_names import (
    ARCHITECTURES,
    PERMUTED,
    from_gguf,
    in_our_order,
    in_their_order,
    to_gguf,
)
from lorimer.formats._marker import MARKER, read_marker, write_marker
from lorimer.formats.safe_io import pieces_of, read_gguf, read_gguf_values, write_files_atomic
from lorimer.kernels.finite import is_finite

_ENTRY = f"lorimer.{MARKER}"
_ENDS = (".weight.lora_a", ".weight.lora_b")
_OTHERS = "Use format 'lorimer', which holds any adapter, or 'peft'"


class GgufFormat(Format):
    """See the module."""

    name = "gguf"
    description = "a GGUF adapter for language models; read by llama.cpp and what is built on it"
    suffix = ".gguf"

    @staticmethod
    def detect(path: Path) -> bool:
        try:
            return path.is_file() and read_gguf_values(path).get("general.type") == "adapter"
        except FileFormatError:
            return False

    @staticmethod
    def read(path: Path) -> AdapterState:
        file = read_gguf(path, max_bytes=MAX_BYTES)
        architecture = file.values.get("general.architecture")
        if file.values.get("adapter.type") != "lora" or not isinstance(architecture, str):
            raise FileFormatError(f"{path}: a GGUF file, but no LoRA adapter")
        marker = read_marker({MARKER: file.values[_ENTRY]} if _ENTRY in file.values else {}, str(path))
        pairs = _pairs(file.tensors, architecture, path)
        alpha = checked_alpha(_float(file.values.get("adapter.lora.alpha", 0.0)), str(path))
        layers = {}
        for layer, (a, b) in pairs.items():
            b = in_our_order(b, heads) if (heads := _heads(layer, file.values, b, path)) else b
            rank = checked_rank(len(a), f"{path}: {layer!r}")
            layers[layer] = LayerState({"A": a, "B": b}, rank, alpha or float(rank))  # 0 means a scale of 1
        metadata = marker.metadata or {"architecture": architecture}
        return AdapterState("lora", layers, marker.config if marker.method else {}, (), metadata)

    @classmethod
    def kept(cls, state: AdapterState) -> AdapterState:
        _require_plain(state)
        alpha = _common_alpha(state)
        layers = {path: _with_alpha(layer, alpha) for path, layer in state.layers.items()}
        return replace(state, layers=layers)

    @staticmethod
    def write(state: AdapterState, path: Path) -> None:
        require_suffix(path, ".gguf")
        require_writable(state)
        _require_plain(state)
        base = _Base.of(state)
        if "lm_head" in state.layers and state.metadata.get("tied_head") == "yes":
            raise FileFormatError(
                "the gguf format: this model's vocabulary head is its embedding, and llama.cpp has no place "
                f"for an adapter there; train without lm_head. {_OTHERS}"
            )
        tensors: dict[str, Tensor] = {}
        for layer, own in GgufFormat.kept(state).layers.items():
            b, heads = own.tensors["B"], base.heads(layer)
            if heads and b.shape[0] % (2 * heads):
                raise FileFormatError(f"{layer!r}: {b.shape[0]} rows are not those of {heads} heads")
            tensors[f"{to_gguf(layer)}{_ENDS[0]}"] = own.tensors["A"]
            tensors[f"{to_gguf(layer)}{_ENDS[1]}"] = in_their_order(b, heads) if heads else b
        _write(tensors, base.values(_common_alpha(state)), write_marker(state)[MARKER], path)


class _Base:
    """What a file says of the model that it is for."""

    def __init__(self, architecture: str, heads: int, key_value_heads: int) -> None:
        self.architecture, self.all_heads, self.key_value_heads = architecture, heads, key_value_heads

    @classmethod
    def of(cls, state: AdapterState) -> _Base:
        """From the facts that the adapter carries.

        Raises:
            FileFormatError: they are missing, or of no architecture whose names are known.
        """
        facts = state.metadata
        kind = facts.get("architecture")
        if kind not in ARCHITECTURES:
            what = (
                "does not say for which architecture it is" if kind is None else f"is for the model {kind!r}"
            )
            raise FileFormatError(
                f"the gguf format: the adapter {what}. Known, as its fact `architecture`: "
                f"{', '.join(ARCHITECTURES)}; with it go `attention_heads` and `key_value_heads`. Runs of "
                f"the task text-generation carry them; lorimer.save takes them as metadata. {_OTHERS}"
            )
        try:
            heads = [int(facts[name]) for name in ("attention_heads", "key_value_heads")]
        except (KeyError, ValueError) as error:
            raise FileFormatError(
                "the gguf format needs the facts attention_heads and key_value_heads as whole numbers. "
                f"{_OTHERS}"
            ) from error
        if not all(0 < each < 2**31 for each in heads):
            raise FileFormatError(f"the gguf format: a model with {heads} heads is none. {_OTHERS}")
        return cls(ARCHITECTURES[kind], *heads)

    def heads(self, layer: str) -> int | None:
        """By how many heads a layer's rows are ordered; None where they are as in transformers."""
        return _row_heads(layer, self.architecture, self.all_heads, self.key_value_heads)

    def values(self, alpha: float) -> dict[str, Any]:
        return {
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": alpha,
            f"{self.architecture}.attention.head_count": self.all_heads,
            f"{self.architecture}.attention.head_count_kv": self.key_value_heads,
            "general.architecture": self.architecture,
        }


def _row_heads(layer: str, architecture: str, heads: Any, key_value_heads: Any) -> Any:
    if architecture not in PERMUTED:
        return None
    return {"q_proj": heads, "k_proj": key_value_heads}.get(layer.rpartition(".")[2])


def _require_plain(state: AdapterState) -> None:
    """Raise where llama.cpp has no names for what there is, or would do something else with it."""
    if state.method != "lora" or any(layer.tensors.keys() != {"A", "B"} for layer in state.layers.values()):
        raise FileFormatError(
            f"the gguf format holds plain LoRA alone, and this is {state.method!r} or has more than A and B. "
            f"{_OTHERS}"
        )
    require_nothing_in_full(state, "gguf")
    strangers = [
        path
        for path, layer in state.layers.items()
        if to_gguf(path) is None or layer.kind != "layer" or layer.tensors["A"].dim() != 2
    ]
    if strangers or not state.layers:
        raise FileFormatError(
            f"the gguf format has no names for {shown(strangers) or 'an adapter without layers'}: it knows "
            f"the projections of attention and feed-forward in `model.layers`, and `lm_head`. {_OTHERS}"
        )


def _common_alpha(state: AdapterState) -> float:
    """The alpha that stands in the file, as float32 has it: the commonest that is not zero."""
    alphas = [layer.alpha for layer in state.layers.values() if layer.alpha]
    return float(torch.tensor(most_common(alphas) if alphas else 1.0, dtype=torch.float32))


def _with_alpha(layer: LayerState, alpha: float) -> LayerState:
    """The same update with another alpha."""
    factor = layer.alpha / alpha
    if abs(factor - 1.0) < 1e-7:  # the same, rounded
        return replace(layer, alpha=alpha)
    b = layer.tensors["B"]
    return replace(layer, alpha=alpha, tensors={**layer.tensors, "B": (b.double() * factor).to(b.dtype)})


def _pairs(tensors: Mapping[str, Tensor], architecture: str, path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> its A and B."""
    found: dict[str, list[Tensor | None]] = {}
    unknown = []
    for key, tensor in tensors.items():
        end = next((place for place, each in enumerate(_ENDS) if key.endswith(each)), None)
        layer = None if end is None else from_gguf(key.removesuffix(_ENDS[end]), architecture)
        if end is None or layer is None or tensor.dim() != 2:
            unknown.append(key)
        else:
            found.setdefault(layer, [None, None])[end] = tensor
    if unknown:
        raise FileFormatError(f"{path}: tensors that are no part of a known layer's LoRA: {shown(unknown)}")
    pairs = {}
    for layer, (a, b) in found.items():
        if a is None or b is None or a.shape[0] != b.shape[1]:
            raise FileFormatError(f"{path}: {layer!r}: its two factors do not belong together")
        pairs[layer] = (a, b)
    if not pairs:
        raise FileFormatError(f"{path}: holds no tensors")
    return pairs


def _heads(layer: str, values: Mapping[str, Any], b: Tensor, path: Path) -> int | None:
    """By how many heads the rows of a layer of a file are ordered."""
    architecture = values["general.architecture"]
    counts = [values.get(f"{architecture}.attention.{name}") for name in ("head_count", "head_count_kv")]
    if _row_heads(layer, architecture, True, True) is None:
        return None
    heads = _row_heads(layer, architecture, *counts)
    if type(heads) is not int or heads < 1 or b.shape[0] % (2 * heads):
        raise FileFormatError(
            f"{path}: {layer!r}: llama.cpp keeps its rows in another order, and without a sound "
            f"{architecture}.attention.head_count and head_count_kv it cannot be told which"
        )
    return heads


def _float(value: Any) -> Any:
    """A float32's value as people write it: 0.1 comes back as 0.1."""
    return float(value) if type(value) in (int, float) else value


def _write(tensors: Mapping[str, Tensor], values: dict[str, Any], marker: str, path: Path) -> None:
    """Write the file, whole or not at all."""
    if find_spec("gguf") is None:
        raise MissingDependencyError('the gguf format needs the package gguf: pip install "lorimer[models]"')
    import gguf

    types = {
        torch.float32: gguf.GGMLQuantizationType.F32,
        torch.float16: gguf.GGMLQuantizationType.F16,
        torch.bfloat16: gguf.GGMLQuantizationType.BF16,
    }
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "adapter.gguf"
        writer = gguf.GGUFWriter(staged, values.pop("general.architecture"))
        for name, value in values.items():
            {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)](
                name, value
            )
        writer.add_string(_ENTRY, marker)
        for name, tensor in sorted(tensors.items()):
            if not is_finite(tensor):
                raise FileFormatError(f"tensor {name!r} holds NaN or infinity; nothing was written")
            data = tensor.detach().cpu().contiguous()
            writer.add_tensor(
                name,
                data.view(torch.uint8).numpy() if data.dtype == torch.bfloat16 else data.numpy(),
                raw_dtype=types[data.dtype],
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_files_atomic({path: pieces_of(staged)})
