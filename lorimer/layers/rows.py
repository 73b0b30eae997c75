"""Mixed batches: every row of a batch has its own adapter, or none.

Rows of the same adapter run together on that adapter's own path, whatever its method. Where the adapters of
all rows are low-rank updates of the same linear layer, the layer runs once for the whole batch and the
updates of all rows are two batched products (S-LoRA, arXiv 2311.03285).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lorimer.errors import UsageError
from lorimer.kernels.low_rank import add_low_rank_rows
from lorimer.layers.linear import LinearGeometry

if TYPE_CHECKING:
    from lorimer.adapters._base import Adapter
    from lorimer.layers.geometry import Geometry

Run = Callable[[Tensor, str | None], Tensor]  # (some rows, their adapter's name or None) -> their output


class Rows:
    """Which adapter each row of a batch has.

    Attributes:
        names: for each row the name of its adapter, or None.
        members: the same the other way round: name or None -> its rows.
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        self.names = tuple(names)
        self.members: dict[str | None, list[int]] = {}
        for row, name in enumerate(self.names):
            self.members.setdefault(name, []).append(row)

    def require_match(self, x: Tensor, axes: int) -> None:
        """Raise `UsageError` unless `x` has that many axes at least, the first of which counts these rows."""
        if x.ndim < axes or len(x) != len(self.names):
            raise UsageError(
                f"this batch is said to have {len(self.names)} rows, but a layer is given an input of shape "
                f"{tuple(x.shape)}: its first axis must count the rows"
            )


def mixed_output(
    rows: Rows,
    x: Tensor,
    acting: Mapping[str, tuple[Adapter, float]],
    base: Geometry,
    run: Run,
    at_once: bool,
) -> Tensor:
    """The layer's output, each row of which is what `run` gives for it with its own adapter.

    Args:
        acting: of the adapters that the rows name, those on this layer's weight, with their strengths.
        run: the layer with one adapter alone.
        at_once: whether those adapters, and the layer without options, are all there is to it.

    Raises:
        UsageError: x has another number of rows.
    """
    rows.require_match(x, axes=1 - base.channel_axis if x.is_floating_point() else 1)
    if len(rows.members) == 1:
        return run(x, rows.names[0])
    output = _all_at_once(rows, x, acting, base) if at_once else None
    return _one_by_one(rows, x, run) if output is None else output


def _one_by_one(rows: Rows, x: Tensor, run: Run) -> Tensor:
    """Each adapter's rows on their own, put back in order."""
    outputs = [
        run(x.index_select(0, torch.tensor(members, device=x.device)), name)
        for name, members in rows.members.items()
    ]
    order = torch.tensor([row for members in rows.members.values() for row in members], device=x.device)
    return torch.cat(outputs).index_select(0, order.argsort())


def _all_at_once(
    rows: Rows, x: Tensor, acting: Mapping[str, tuple[Adapter, float]], base: Geometry
) -> Tensor | None:
    """The whole batch by batched products; None where an adapter is no plain low-rank update of a linear
    layer. Smaller ranks are filled up with zeros."""
    updates = [adapter.low_rank() for adapter, _ in acting.values()]
    plain = [
        update
        for update, (adapter, _) in zip(updates, acting.values(), strict=True)
        if update is not None and not update.dropout and adapter.adapt_bias(base.bias) is base.bias
    ]
    if not plain or len(plain) < len(updates) or not isinstance(base, LinearGeometry):
        return None
    rank = max(len(update.A) for update in plain)
    A = [_filled_up(update.A, rank, axis=0) for update in plain]
    B = [_filled_up(update.B, rank, axis=1) for update in plain]
    scales = [update.scale * strength for update, (_, strength) in zip(plain, acting.values(), strict=True)]
    if len(acting) < len(rows.members):  # what rows without an adapter have
        A, B, scales = [*A, torch.zeros_like(A[0])], [*B, torch.zeros_like(B[0])], [*scales, 0.0]
    places: dict[str | None, int] = {name: place for place, name in enumerate(acting)}
    chosen = [places.get(name, -1) for name in rows.names]  # name or None, the last where it does not act
    return add_low_rank_rows(
        base.output(x),
        x,
        torch.stack([A[place] for place in chosen]),
        torch.stack([B[place] for place in chosen]),
        torch.tensor([scales[place] for place in chosen], dtype=A[0].dtype, device=x.device),
    )


def _filled_up(factor: Tensor, rank: int, axis: int) -> Tensor:
    """A factor with zeros behind its own rank."""
    lacking = rank - factor.shape[axis]
    return F.pad(factor, (0, 0, 0, lacking) if axis == 0 else (0, lacking)) if lacking else factor
