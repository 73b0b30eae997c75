"""What an adapter's tensors would take at any rank, and the ranks that fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from lorimer.adapters._base import Method
from lorimer.layers.sites import Site


class Costs:
    """Bytes of an adapter's tensors at any site and rank, without taking their memory."""

    def __init__(
        self, method: Method, sites: Mapping[str, Site], dtype: torch.dtype | None, max_rank: int
    ) -> None:
        self.method, self.sites, self.dtype = method, sites, dtype
        specs = {path: site.geometry(site.layer, site.parameter).spec() for path, site in sites.items()}
        self._specs = {path: replace(spec, device=torch.device("meta")) for path, spec in specs.items()}
        limits = {path: min(max_rank, *spec.matrix_shape) for path, spec in specs.items()}
        self.limits = limits if method.ranked else dict.fromkeys(sites, 1)
        self._known: dict[tuple[Any, int], int] = {}
        covered = {path: spec.matrix_shape[0] * spec.matrix_shape[1] for path, spec in specs.items()}
        self.order = sorted(sites, key=lambda path: covered[path] / self.of(path, 1), reverse=True)

    def at(self, rank: int) -> Method:
        """The method at a rank."""
        return self.method.with_rank(rank, self.method.alpha) if self.method.ranked else self.method

    def of(self, path: str, rank: int) -> int:
        """Of one layer."""
        key = (self._specs[path], rank)
        if key not in self._known:
            tensors = self.at(rank).build(self._specs[path]).state_dict().values()
            self._known[key] = sum(each.numel() * (self.dtype or each.dtype).itemsize for each in tensors)
        return self._known[key]

    def total(self, ranks: Mapping[str, int]) -> int:
        """Of several layers."""
        return sum(self.of(path, rank) for path, rank in ranks.items())

    def fitting(self, limit: float) -> dict[str, int]:
        """Path -> rank for at most `limit` bytes of tensors; empty where nothing fits."""
        chosen = list(self.order)
        while chosen and self.total(dict.fromkeys(chosen, 1)) > limit:
            chosen.pop()
        low, high = 1, max((self.limits[path] for path in chosen), default=1)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.total(self._capped(chosen, middle)) <= limit
            low, high = (middle, high) if fits else (low, middle - 1)
        ranks = self._capped(chosen, low)
        left = limit - self.total(ranks)
        for path in chosen:
            more = self.of(path, low + 1) - self.of(path, low) if low < self.limits[path] else 0
            if ranks[path] == low and 0 < more <= left:
                ranks[path], left = low + 1, left - more
        return {path: ranks[path] for path in self.sites if path in ranks}

    def _capped(self, paths: list[str], rank: int) -> dict[str, int]:
        return {path: min(rank, self.limits[path]) for path in paths}
