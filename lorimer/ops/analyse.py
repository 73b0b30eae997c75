"""What an adapter does to each layer: how strong, how wide, and whether it gets into another one's way."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.adapters._state import AdapterState
from lorimer.attachment.survey import survey
from lorimer.errors import TargetError, UsageError, suggest
from lorimer.ops._derived import printable
from lorimer.ops._spectrum import Decomposition, effective_rank, factored_svd, stable_rank
from lorimer.ops._updates import Update, updates_of

# Two updates collide where they are this much alike or opposed: stacked, they would double or cancel a
# tenth of their energy and more. Two random updates of a common layer are below 0.01.
COSINE = 0.3
# ... or where this share of either one's energy lies where the other acts, in rows and columns alike.
SHARED = 0.25
_MAIN = 0.95  # where an update acts: the directions that hold so much of its energy


@dataclass(frozen=True)
class Overlap:
    """How two updates of one layer relate.

    Attributes:
        cosine: of the angle between them as vectors: 1 doubles, -1 cancels, 0 does neither.
        shared: the larger share of either one's energy ‖Δ‖² that lies in the other's main rows and columns.
        outputs, inputs: cosines of the principal angles between their main column spaces, and between their
            main row spaces, falling (Björck & Golub 1973).
    """

    cosine: float
    shared: float
    outputs: tuple[float, ...]
    inputs: tuple[float, ...]

    @property
    def collides(self) -> bool:
        """Whether the two, stacked, disturb each other."""
        return abs(self.cosine) >= COSINE or self.shared >= SHARED


@dataclass(frozen=True)
class LayerAnalysis:
    """One layer's update Δ.

    Attributes:
        rank: how many singular values its factors have room for.
        norm: ‖Δ‖, Frobenius.
        relative: ‖Δ‖ over the base weight's norm; None without the model.
        effective_rank: exp of the entropy of the singular values: how many directions it really uses.
        stable_rank: ‖Δ‖² over the squared largest singular value.
        spectrum: the singular values, falling; of a stack, the root mean squares over it.
        overlap: with the other adapter's update there; None without one.
    """

    rank: int
    norm: float
    relative: float | None
    effective_rank: float
    stable_rank: float
    spectrum: tuple[float, ...]
    overlap: Overlap | None


@dataclass(frozen=True)
class Analysis:
    """An adapter, layer by layer."""

    layers: dict[str, LayerAnalysis]

    @property
    def norm(self) -> float:
        """Of all updates together."""
        return math.hypot(*(layer.norm for layer in self.layers.values()))

    @property
    def collisions(self) -> dict[str, Overlap]:
        """Layers where stacking the two adapters disturbs them, the worst first."""
        found = {path: each.overlap for path, each in self.layers.items() if each.overlap is not None}
        worst = sorted(found.items(), key=lambda item: -max(abs(item[1].cosine), item[1].shared))
        return {path: overlap for path, overlap in worst if overlap.collides}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for programs."""
        layers = {path: asdict(layer) for path, layer in self.layers.items()}
        return {"norm": self.norm, "layers": layers, "collisions": list(self.collisions)}

    def lines(self) -> list[str]:
        """Lines for people: a table, and a warning where it is due."""
        compared = any(layer.overlap is not None for layer in self.layers.values())
        heads = ["norm", "of base", "rank", "effective", "stable"] + ["cosine", "shared"] * compared
        lines = ["".join(f"{head:>10}" for head in heads) + "  layer"]
        for path, layer in self.layers.items():
            lines.append("".join(f"{cell:>10}" for cell in _cells(layer, compared)) + f"  {path}")
        lines.append(f"{self.norm:10.4g}  all {len(self.layers)} layers")
        if self.collisions:
            lines += [
                f"warning: in {len(self.collisions)} layers both adapters act on the same directions;",
                "stacked, they will not do there what each does alone:",
            ]
            for path, overlap in list(self.collisions.items())[:5]:
                lines.append(f"  cosine {overlap.cosine:+.2f}, {overlap.shared:.0%} shared  {path}")
        return printable(lines)

    def __str__(self) -> str:
        return "\n".join(self.lines())


def analyse(
    state: AdapterState, other: AdapterState | None = None, *, model: nn.Module | None = None
) -> Analysis:
    """The spectrum, size and spread of every update; and with another adapter, where the two collide.

    Works on the factors: no update is ever formed, unless its method needs the model.

    Args:
        other: an adapter for the same model.
        model: the base model; for norms relative to its weights, and for methods whose update depends on
            them.

    Raises:
        UsageError: a method needs the model; the adapters are for different models, or for another one.
        LorimerError: an adapter holds NaN or infinity.
    """
    others = {} if other is None else {path: update for path, update, _ in _updates(other, model)}
    sites = {} if model is None else survey(model).sites
    layers: dict[str, LayerAnalysis] = {}
    for path, update, _ in _updates(state, model):
        site = sites.get(path)
        if model is not None and site is None:
            raise TargetError(f"the model has no {path!r}.{suggest(path, sites)}")
        base = (
            None
            if site is None
            else site.geometry(site.layer, site.parameter).matrix().double().norm().item()
        )
        svd = factored_svd(update.up, update.down)
        values = _pooled(svd[1])
        norm = svd[1].norm().item()
        layers[path] = LayerAnalysis(
            rank=update.rank,
            norm=norm,
            relative=norm / base if base else None,
            effective_rank=effective_rank(values),
            stable_rank=stable_rank(values),
            spectrum=tuple(values.tolist()),
            overlap=_overlap(path, update, others[path], svd) if path in others else None,
        )
    return Analysis(layers)


def _cells(layer: LayerAnalysis, compared: bool) -> list[str]:
    """A layer's row of the table."""
    relative = "" if layer.relative is None else f"{layer.relative:.2%}"
    cells = [f"{layer.norm:.4g}", relative, str(layer.rank)]
    cells += [f"{layer.effective_rank:.2f}", f"{layer.stable_rank:.2f}"]
    if compared and layer.overlap is None:
        return [*cells, "", ""]
    return cells + ([f"{layer.overlap.cosine:+.2f}", f"{layer.overlap.shared:.0%}"] if layer.overlap else [])


def _updates(state: AdapterState, model: nn.Module | None) -> Any:
    return updates_of(state, model, whole=True)


def _pooled(values: Tensor) -> Tensor:
    """Singular values (..., k) as (k,)."""
    return values.square().reshape(-1, values.shape[-1]).mean(0).sqrt()


def _overlap(path: str, update: Update, other: Update, svd: Decomposition) -> Overlap:
    """Between two updates of one layer, from their factors alone."""
    if update.shape != other.shape:
        raise UsageError(
            f"{path!r} is of shape {update.shape} in one adapter and {other.shape} in the other; "
            "they are for different models"
        )
    U, S, V = svd
    P, T, Q = factored_svd(other.up, other.down)
    columns, rows = U.mT @ P, V @ Q.mT  # how the singular vectors of one lie in those of the other
    inner = ((S.unsqueeze(-1) * columns * T.unsqueeze(-2)) * rows).sum().item()
    size = (S.norm() * T.norm()).item()
    mine, theirs = _main(S), _main(T)
    seen = columns[..., :, :theirs].mT @ (S.unsqueeze(-1) * rows[..., :, :theirs])  # Δ within the other's
    given = columns[..., :mine, :] @ (T.unsqueeze(-1) * rows[..., :mine, :].mT)
    shares = [part.norm().item() ** 2 / whole for part, whole in _positive((seen, S), (given, T))]
    return Overlap(
        cosine=inner / size if size else 0.0,
        shared=max(shares, default=0.0),
        outputs=_angles(columns[..., :mine, :theirs]),
        inputs=_angles(rows[..., :mine, :theirs]),
    )


def _positive(*pairs: tuple[Tensor, Tensor]) -> list[tuple[Tensor, float]]:
    """(part, energy of the whole) of those that do anything."""
    found = [(part, values.square().sum().item()) for part, values in pairs]
    return [(part, energy) for part, energy in found if energy]


def _main(values: Tensor) -> int:
    """How many directions hold most of an update's energy."""
    squares = _pooled(values).square()
    return int((squares.cumsum(0) < _MAIN * squares.sum()).sum().item()) + 1


def _angles(products: Tensor) -> tuple[float, ...]:
    """Cosines of the principal angles from the products of two orthonormal bases; of a stack, the means."""
    values = torch.linalg.svdvals(products)
    return tuple(values.reshape(-1, values.shape[-1]).mean(0).clamp(0, 1).tolist())
