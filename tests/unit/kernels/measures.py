"""What the tests of the kernels measure: gradients side by side, and what is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor

from tests.tolerances import SAME_GRADIENT, SAME_OUTPUT, relative_difference


def leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies that require a gradient, with the strides they had."""
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def results(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The output and the gradient of each tensor, for a gradient at the output that has no symmetry."""
    output = function(*tensors)
    wave = torch.arange(output.numel(), dtype=torch.float64).cos().view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, tensors, wave)]


def assert_same(ours: Callable[..., Tensor], truth: Callable[..., Tensor], tensors: Iterable[Tensor]) -> None:
    """Output and all gradients of `ours` are those of `truth`, in shape, type and value."""
    inputs = leaves(tensors)
    for left, right in zip(results(ours, inputs), results(truth, inputs), strict=True):
        assert left.shape == right.shape and left.dtype == right.dtype
        if left.numel():
            exact = left.dtype == torch.float64
            assert relative_difference(left, right) <= (SAME_GRADIENT if exact else SAME_OUTPUT[left.dtype])


class SavedBytes:
    """Bytes of distinct storages kept for the backward pass, those of `known` tensors left out."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.storages: dict[int, int] = {}

    @contextmanager
    def counted(self):
        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._known:
                self.storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        def unpack(tensor: Tensor) -> Tensor:
            return tensor

        pack.transparent = unpack.transparent = True
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield self

    def total(self) -> int:
        return sum(self.storages.values())
