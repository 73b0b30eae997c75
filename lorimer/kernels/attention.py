"""Which of PyTorch's attention kernels short texts get."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT = 128  # tokens


def attention_for(length: int, device: torch.device) -> AbstractContextManager[None]:
    """The context in which a forward pass over texts of `length` tokens picks the quickest kernel.

    PyTorch's fused kernel on CPUs takes ten times as long as plain products for the backward pass over short
    texts in bfloat16 (measured in benchmarks/speed/attention.py); from some 256 tokens on it is the quicker.
    """
    narrow = torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    if device.type == "cpu" and length <= SHORT and narrow:
        return sdpa_kernel([SDPBackend.MATH])
    return nullcontext()
