"""Full training: the parameter itself, or some of its rows, learned beside the frozen one.

    W' = V          V starts as a copy of W; with `rows`, only those rows of W' are V

For heads that were not trained before, norms, biases, and the rows of new tokens. The frozen parameter
stays as it was, so detaching gives it back; files carry V itself, so a head is what it was when saved,
whatever the head of the model that it is loaded onto.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorimer.adapters._base import Adapter, Method, WeightSpec
from lorimer.errors import UsageError


@dataclass(frozen=True)
class Full(Method):
    """Full training of a parameter.

    Attributes:
        rows: indices into the parameter's first axis, e.g. of new tokens in an embedding; None trains all.
    """

    name: ClassVar[str] = "full"
    replaces: ClassVar[bool] = True
    ranked: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack", "vector", "other"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {"value": {}}

    rank: int = 1
    rows: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank != 1 or self.alpha not in (None, 1):
            raise UsageError("full training has no rank and no alpha; leave them out")

    def build(self, spec: WeightSpec) -> FullAdapter:
        return FullAdapter(self, spec)


class FullAdapter(Adapter):
    """V, in the parameter's own shape (or rows of it)."""

    method: Full
    rows: Tensor | None

    def __init__(self, method: Full, spec: WeightSpec) -> None:
        super().__init__()
        self.method = method
        rows = method.rows
        if rows is not None and not (rows and all(0 <= row < spec.shape[0] for row in rows)):
            raise UsageError(f"rows must be indices from 0 to {spec.shape[0] - 1}, not {rows!r}")
        if rows is not None and len(set(rows)) != len(rows):
            raise UsageError(f"rows holds an index twice: {rows!r}")
        shape = spec.shape if rows is None else (len(rows), *spec.shape[1:])
        self.value = torch.nn.Parameter(torch.empty(shape, dtype=spec.dtype, device=spec.device))
        self.register_buffer("rows", None if rows is None else torch.tensor(rows, device=spec.device), False)

    @torch.no_grad()
    def start(self, weight: Callable[[], Tensor]) -> None:
        value = weight()
        self.value.copy_(value if self.rows is None else value[self.rows])

    def adapt(self, weight: Tensor) -> Tensor:
        if self.rows is None:
            return self.value.to(weight.dtype)
        return weight.index_copy(0, self.rows, self.value.to(weight.dtype))
