"""What an adapter amounts to, for a person to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lorimer.adapters._base import Adapter
from lorimer.layers.sites import Site, base_parameters

_HEADER_BYTES = 120  # what a safetensors header spends on one tensor, about


@dataclass(frozen=True)
class LayerReport:
    """One adapted layer."""

    path: str
    type: str
    method: str
    shape: tuple[int, ...]
    rank: int | None
    alpha: float | None
    parameters: int


@dataclass(frozen=True)
class Report:
    """An adapter in figures.

    Attributes:
        layers: one row per adapted layer.
        trainable: parameters of the adapter.
        total: parameters of the base model.
        file_bytes: about how large the saved file will be, in the adapter's own precision.
    """

    layers: tuple[LayerReport, ...]
    trainable: int
    total: int
    file_bytes: int

    def __str__(self) -> str:
        kinds = Counter((row.type, row.method, row.rank, row.alpha) for row in self.layers)
        share = self.trainable / max(self.total, 1)
        lines = [
            f"{len(self.layers)} layers adapted, {self.trainable:,} parameters train beside {self.total:,} "
            f"frozen ones ({share:.2%}); the file will take about {self._size()}"
        ]
        for (kind, method, rank, alpha), count in kinds.items():
            size = "" if rank is None else f", rank {rank}, alpha {alpha:g}"
            lines.append(f"  {count:4d} x {kind}, {method}{size}")
        return "\n".join(lines)

    def _size(self) -> str:
        kilobytes = self.file_bytes / 1e3
        return f"{kilobytes / 1e3:.2f} MB" if kilobytes >= 1e3 else f"{kilobytes:.0f} kB"


def report_on(model: nn.Module, found: Mapping[str, tuple[Site, Adapter]]) -> Report:
    """The report on one adapter (path -> its site and its parameters there) in `model`."""
    rows, file_bytes = [], 0
    for path, (site, adapter) in found.items():
        tensors = list(adapter.state_dict().values())
        file_bytes += sum(tensor.nbytes + _HEADER_BYTES for tensor in tensors)
        cls = getattr(type(site.layer), "adapted_class", type(site.layer))
        rows.append(
            LayerReport(
                path,
                cls.__name__,
                adapter.method.name,
                tuple(site.geometry(site.layer, site.parameter).like().shape),
                adapter.method.rank if adapter.method.ranked else None,
                adapter.method.scaled_alpha if adapter.method.ranked else None,
                sum(tensor.numel() for tensor in adapter.parameters()),
            )
        )
    total = sum(parameter.numel() for _, parameter in base_parameters(model))
    return Report(tuple(rows), sum(row.parameters for row in rows), total, file_bytes)
