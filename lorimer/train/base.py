"""The frozen base: loaded as a recipe says, and looked after."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.errors import LorimerError, RecipeError, UsageError
from lorimer.layers.offload import Offload, blocks_of, move
from lorimer.layers.quantise import KEPT, quantise_base
from lorimer.layers.quantised import dequantised, is_quantised
from lorimer.layers.slots import LayerSlots
from lorimer.tasks._base import Task
from lorimer.train.events import describe_bytes
from lorimer.train.recipe import Recipe
from lorimer.train.sections import TrainSection

_NOT_REENTRANT = {"use_reentrant": False}
# How libraries call it -> with what options.
_CHECKPOINTING: dict[str, dict[str, Any]] = {
    "enable_gradient_checkpointing": {},  # diffusers, never reentrant
    "activation_checkpointing_enable": {"activation_checkpointing_kwargs": _NOT_REENTRANT},  # transformers
    "gradient_checkpointing_enable": {"gradient_checkpointing_kwargs": _NOT_REENTRANT},  # and its older name
}


Loaded = tuple[nn.Module, Offload | None, tuple[str, ...]]


def load(recipe: Recipe, task: Task, device: torch.device) -> Loaded:
    """The base on its device, kept as the recipe says: (model, blocks that only visit, notes).

    Raises:
        RecipeError: it cannot be kept so.
    """
    model, train = task.model(), recipe.train
    denoiser: nn.Module = getattr(model, "denoiser", model)
    if train.offload == "blocks":
        return _offloaded(model, denoiser, train, device)
    if train.base_precision not in KEPT:
        return model.to(device), None, ()
    types = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    spared = task.spared(model) if denoiser is model else ()
    try:
        saved = quantise_base(denoiser, train.base_precision, device, types[train.mixed_precision], spared)
    except UsageError as error:
        raise RecipeError(f"train.base_precision: {error}") from error
    note = (
        f"{saved.layers} layers kept in {train.base_precision}: {type(denoiser).__name__} takes "
        f"{describe_bytes(saved.after)} instead of {describe_bytes(saved.before)}; these weights are off by "
        f"{saved.error:.1%}, and steps take longer"
    )
    return model.to(device), None, (note,)


def _offloaded(model: nn.Module, denoiser: nn.Module, train: TrainSection, device: torch.device) -> Loaded:
    """The base with the denoiser's blocks in main memory."""
    if train.base_precision != "exact":
        raise RecipeError(f"train.offload: does not go with base_precision {train.base_precision}")
    blocks = blocks_of(denoiser.requires_grad_(False))
    if len(blocks) <= train.offload_resident:
        raise RecipeError(
            f"train.offload: {type(denoiser).__name__} has {len(blocks)} blocks, and "
            f"train.offload_resident keeps {train.offload_resident}; nothing is left to visit"
        )
    offload = Offload(blocks[train.offload_resident :], device)
    move(model, device, offload)
    spared = describe_bytes(offload.bytes_at_home)
    return model, offload, (f"{len(offload.home)} of {len(blocks)} blocks stay in main memory: {spared}",)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Turn it on in every part that can.

    Never the reentrant kind: where the inputs of a block need no gradient, as before frozen layers, that
    gives its adapters none either, silently.
    """
    parts: list[Any] = [model.get_submodule(name) for name in getattr(model, "components", ())] or [model]
    able = [_enable_checkpointing_in(part) for part in parts]
    if not any(able):
        raise RecipeError(
            f"train.gradient_checkpointing: {type(model).__name__} has no such thing: none of "
            f"{', '.join(_CHECKPOINTING)} works on it; set it to false"
        )


def _enable_checkpointing_in(part: Any) -> bool:
    for method, options in _CHECKPOINTING.items():
        if hasattr(part, method):
            try:
                getattr(part, method)(**options)
            except ValueError:  # the class has the method, but says that it cannot
                return False
            return True
    return False


def fingerprint(model: nn.Module, without: Sequence[str] = ()) -> dict[str, int]:
    """Name -> checksum of the bytes of every tensor that the base model would save, but for the children
    `without`. Of a quantised layer it is that of the plain values: packages pack its weight anew at times,
    and bitsandbytes gives its bias the type of the last input."""
    left_out, found = [f"{name}." for name in without], {}
    for path, module in model.named_modules(remove_duplicate=False):  # the state dict has every path, too
        if isinstance(module, LayerSlots):
            left_out.append(f"{path}.")
        elif is_quantised(module) and not path.startswith(tuple(left_out)):
            left_out += [f"{path}.{name}" for name in ("weight", "bias", "SCB", "CB")]
            found[f"{path}.weight"] = zlib.crc32(_bytes(dequantised(module)))
            if (bias := module._parameters.get("bias")) is not None:
                found[f"{path}.bias"] = zlib.crc32(_bytes(bias.float()))
    plain = {
        name: zlib.crc32(_bytes(tensor))
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and not name.startswith(tuple(left_out))
    }
    return found | plain


def require_base_unchanged(model: nn.Module, base: Mapping[str, int], parked: Sequence[str] = ()) -> None:
    """Raise `LorimerError` where a tensor of the frozen base is not as its fingerprint `base` says. The
    children `parked` are away, so that nothing can have changed them."""
    now, away = fingerprint(model, parked), tuple(f"{name}." for name in parked)
    before = {name: value for name, value in base.items() if not name.startswith(away)}
    changed = [name for name in now.keys() | before.keys() if now.get(name) != before.get(name)]
    if changed:
        raise LorimerError(
            f"training changed the frozen base model: {', '.join(sorted(changed)[:5])} ({len(changed)} of "
            f"{len(base)} tensors). The adapter would not fit the base as it was, so it is not "
            "exported; the model's forward or the task's loss must not write to them"
        )


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]
