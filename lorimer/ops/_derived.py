"""What an operation on adapters gives back: the new adapter, and how true it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from lorimer.adapters._state import AdapterState


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer.

    Attributes:
        rank_before: of the update that was asked for; None where that was no product of factors.
        rank: of the update that was written.
        norm: ‖Δ‖, Frobenius, of the update that was asked for.
        error: ‖Δ - Δ'‖ / ‖Δ‖, before rounding to the file's precision.
    """

    rank_before: int | None
    rank: int
    norm: float
    error: float


@dataclass(frozen=True)
class Derived:
    """An adapter made from others, and how true it is to what was asked for.

    Attributes:
        state: the adapter; `lorimer.write` saves it, `lorimer.attach_state` puts it onto a model.
        layers: path -> what became of that layer.
        left_out: parameter -> relative size of a difference that the adapter does not carry; None where it
            is one of shapes.
    """

    state: AdapterState
    layers: dict[str, LayerChange]
    left_out: dict[str, float | None] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """‖Δ - Δ'‖ / ‖Δ‖ over all layers together."""
        norm = math.hypot(*(layer.norm for layer in self.layers.values()))
        lost = math.hypot(*(layer.error * layer.norm for layer in self.layers.values()))
        return lost / norm if norm else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for programs."""
        layers = {path: asdict(layer) for path, layer in self.layers.items()}
        return {"error": self.error, "layers": layers, "left_out": self.left_out}

    def lines(self) -> list[str]:
        """Lines for people."""
        ranks = sorted(layer.rank for layer in self.layers.values())
        span = f", rank {' to '.join(map(str, sorted({*ranks[:1], *ranks[-1:]})))}" if ranks else ""
        kept = f"relative error {self.error:.3g}, energy kept {1 - self.error**2:.4%}"
        lines = [f"{len(self.layers)} layers{span}; {kept}"]
        worst = sorted(self.layers.items(), key=lambda item: -item[1].error)[:5]
        if self.error:
            lines += [
                "least true",
                *(f"  {each.error:.3g}  rank {each.rank}  {path}" for path, each in worst),
            ]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out)} parameters that differ")
            largest = sorted(((size or math.inf, name) for name, size in self.left_out.items()), reverse=True)
            lines += [f"  {size:.3g}  {name}" for size, name in largest[:5]]
        return printable(lines)

    def __str__(self) -> str:
        return "\n".join(self.lines())


def printable(lines: Iterable[str]) -> list[str]:
    """Lines with names from files, for a terminal: nothing in them moves its cursor or colours it."""
    return ["".join(letter if letter.isprintable() else "�" for letter in line)[:300] for line in lines]
