"""How LoRA's factors begin: pure functions from a weight to A and B.

start        B·A at the start        source
kaiming      0                       LoRA's reference code: A Kaiming-uniform, B zero
gaussian     0                       LoRA's paper, section 4.1: A normal, B zero
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Start:
    """One way to begin.

    Attributes:
        fill: (A, B, weight, scale) -> None, writes A (rank, in) and B (out, rank) in place.
        shifts: B·A is not zero, so that the update must count from it.
    """

    fill: Callable[[Tensor, Tensor, Callable[[], Tensor], float], None]
    shifts: bool = False


def _kaiming(A: Tensor, B: Tensor, weight: Callable[[], Tensor], scale: float) -> None:
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    nn.init.zeros_(B)


def _gaussian(A: Tensor, B: Tensor, weight: Callable[[], Tensor], scale: float) -> None:
    nn.init.normal_(A, std=1 / A.shape[0])
    nn.init.zeros_(B)


STARTS: dict[str, Start] = {"kaiming": Start(_kaiming), "gaussian": Start(_gaussian)}


@torch.no_grad()
def fill(start: str, A: Tensor, B: Tensor, weight: Callable[[], Tensor], scale: float) -> None:
    """Fill A (rank, in) and B (out, rank), or stacks of them, after the start of that name. `weight()` gives
    the frozen weight (out, in), or their stack; the update is scale · B·A."""
    if A.ndim == 2:
        STARTS[start].fill(A, B, weight, scale)
        return
    for index in range(len(A)):
        STARTS[start].fill(A[index], B[index], lambda index=index: weight()[index], scale)  # type: ignore[misc]
