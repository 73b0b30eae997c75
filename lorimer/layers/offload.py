"""Frozen blocks that live in main memory and visit the device when they are needed.

A block's weights come before its forward and go after it; in the backward pass they come again, either
with the block's forward, where gradient checkpointing computes it anew, or alone, where autograd asks for
a weight that it saved:

    forward    block 0 | block 1 | block 2 ...     beside each, the next one is already on its way
    backward   ... block 2 | block 1 | block 0

Autograd would keep each weight that a product has used on the device. `sparing` has it keep the weight's
place instead. Adapters are attached later and stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a network: the elements of its `nn.ModuleList`s, the largest that gradient checkpointing
    computes as a whole, since a part computed anew must itself call for its weights."""
    found: list[nn.Module] = []
    for parent in model.children():
        for child in parent.children() if isinstance(parent, nn.ModuleList) else ():
            if _is_whole(child):
                found.append(child)
            else:
                found += blocks_of(child)
        if not isinstance(parent, nn.ModuleList):
            found += blocks_of(parent)
    return found


def _is_whole(block: nn.Module) -> bool:
    """Whether nothing inside is computed anew by itself. In diffusers what has `gradient_checkpointing` does
    so with its parts, in transformers (`GradientCheckpointingLayer`) with itself."""
    for module in block.modules():
        itself = any(cls.__name__ == "GradientCheckpointingLayer" for cls in type(module).__mro__)
        if hasattr(module, "gradient_checkpointing") and not (itself and module is block):
            return False
    return True


@dataclass(frozen=True)
class _Place:
    """Where a saved tensor is to be had again: a view of one weight of one block."""

    block: int
    weight: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Sent:
    """Copies of a block's weights on the device, there once `event` has happened."""

    tensors: list[Tensor]
    event: torch.cuda.Event | None


class Offload:
    """The blocks that visit.

    Args:
        blocks: modules whose forward is called, none inside another; their weights are not yet on `device`.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        self.weights = [list(block.parameters()) for block in blocks]
        cuda = device.type == "cuda"
        for weight in (weight for own in self.weights for weight in own) if cuda else ():
            weight.data = weight.data.cpu().pin_memory()  # which the GPU can read while it computes
        self.home = [[weight.data for weight in own] for own in self.weights]
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._present: dict[int, tuple[int, int]] = {}  # where a visiting weight lies -> (block, weight)
        self._ahead: dict[int, _Sent] = {}
        self._followed: dict[tuple[int, int], int] = {}  # (block, the next) -> the one after, as last time
        self._last = (-1, -1)
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda module, inputs, number=number: self._bring(number))
            block.register_forward_hook(
                lambda module, inputs, output, number=number: self._leave(number), always_call=True
            )

    @property
    def bytes_at_home(self) -> int:
        """What the device is spared."""
        return sum(each.numel() * each.element_size() for own in self.home for each in own)

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """Within this context autograd keeps places instead of visiting weights."""
        with saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _bring(self, number: int) -> None:
        """Put a block's weights on the device, and send for the block that came next the last time."""
        sent = self._ahead.pop(number, None) or self._send(number)
        if sent.event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(sent.event)
            for each in sent.tensors:
                each.record_stream(stream)
        for place, (weight, visiting) in enumerate(zip(self.weights[number], sent.tensors, strict=True)):
            weight.data = visiting
            self._present[visiting.untyped_storage().data_ptr()] = (number, place)
        self._followed[self._last] = number
        self._last = (self._last[1], number)
        following = self._followed.get(self._last)
        self._ahead = {} if following in (None, number) else {following: self._send(following)}

    def _leave(self, number: int) -> None:
        """Take a block's weights from the device. What a backward pass saved of them stays while it must."""
        for weight, home in zip(self.weights[number], self.home[number], strict=True):
            self._present.pop(weight.data.untyped_storage().data_ptr(), None)
            weight.data = home

    def _send(self, number: int) -> _Sent:
        """Begin to copy a block's weights to the device."""
        if self._stream is None:
            return _Sent([each.to(self.device, copy=True) for each in self.home[number]], None)
        with torch.cuda.stream(self._stream):
            tensors = [each.to(self.device, non_blocking=True) for each in self.home[number]]
            return _Sent(tensors, self._stream.record_event())

    def _pack(self, tensor: Tensor) -> Any:
        place = self._present.get(tensor.untyped_storage().data_ptr())
        if place is None:
            return tensor
        return _Place(*place, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, saved: Any) -> Tensor:
        if not isinstance(saved, _Place):
            return saved
        weight = self.home[saved.block][saved.weight].to(self.device, non_blocking=True)
        return weight.as_strided(saved.size, saved.stride, saved.offset)


def move(model: nn.Module, device: torch.device, offload: Offload | None) -> None:
    """Put all that does not visit on `device`."""
    visiting = {id(weight) for own in (offload.weights if offload else []) for weight in own}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in visiting:
                parameter.data = parameter.data.to(device)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
