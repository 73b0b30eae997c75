"""Dropout that remembers a number in place of a mask.

    drop(x) = x · mask / (1 - p)        each entry of the mask is 0 with probability p, else 1

The mask is drawn from a seed, and drawn again from the same seed in the backward pass, so that nothing of
the input's size is kept. Drawing a number per entry costs more time than the low-rank product itself, so the
rows of a wide mask are overlapping windows of one stream of numbers:

    mask[t, i] = stream[t · step + i]        step = in / 16

Entries of one row are independent, and so are those of one column; an entry meets its own number again only
in the fifteen rows beside it, and there at another feature.
"""

from __future__ import annotations

import torch
from torch import Tensor

_REUSE = 16  # rows that meet the same number
_WIDE = 256  # narrower masks draw every entry: too few features to shift by


def draw_seed() -> int:
    """A seed from torch's default generator, on the CPU whatever the device: reading a number back from a
    GPU would stall it, and gradient checkpointing restores this generator together with the device's."""
    return int(torch.randint(2**62, ()).item())


def dropout_mask(x: Tensor, width: int, p: float, seed: int) -> Tensor:
    """The mask of `seed` for x, in x's shape, type and place: 0 or 1 / (1 - p).

    `width` is the length of its rows: the features of a token, the pixels of a channel. It is a view whose
    entries share memory: read only.
    """
    rows = x.numel() // max(width, 1)
    step = width // _REUSE if width >= _WIDE else width
    generator = torch.Generator(x.device).manual_seed(seed)
    stream = torch.empty(rows * step + width, device=x.device).uniform_(generator=generator)
    kept = 0.0 if p >= 1 else 1 / (1 - p)
    stream = stream.ge_(p).mul_(kept).to(x.dtype)
    return stream.as_strided((rows, width), (step, 1)).view(x.shape)
