"""Which of PyTorch's attention kernels short texts get."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT = 128  # tokens


def attention_for(
    length: int, device: torch.device, recomputed: bool = False
) -> AbstractContextManager[None]:
    """The context in which a forward pass over texts of `length` tokens picks the quickest kernel.

    PyTorch's fused kernel on CPUs is slow in the backward pass over short texts in bfloat16: plain products
    take 0.4 to 0.9 of its time, where in float32 they take twice as long (benchmarks/speed/attention.py).
    Over long texts they would hold scores for all pairs of tokens.

    Args:
        recomputed: whether the backward pass computes activations anew, which it does outside this context
            and so with the kernel of everywhere else.
    """
    narrow = torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    if device.type == "cpu" and length <= SHORT and narrow and not recomputed:
        return sdpa_kernel([SDPBackend.MATH])
    return nullcontext()
