"""In which precision a kernel computes, with and without autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """What `F.linear` computes an input like `x` in: x's own type, or autocast's."""
    return torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype


def autocasts(x: Tensor) -> bool:
    """Whether autocast chooses the type that a product with `x` is computed in; it leaves float64 alone."""
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def own_precision(x: Tensor) -> AbstractContextManager[object]:
    """Keeps autocast out of a kernel, which has settled its types itself."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def plain_ops_needed() -> bool:
    """Whether something looks through the kernels and needs ordinary differentiable operations: the compiler,
    which fuses them and chooses itself what to keep, or a `torch.func` transform."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
