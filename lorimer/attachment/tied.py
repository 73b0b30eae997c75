"""Weights that several layers share, such as an embedding's and a language model's head.

"refuse"     nobody adapts such a weight unasked
"apart"      the named layer alone is adapted; merging gives it a weight of its own
"together"   one adapter acts on every layer that has the weight; merging changes it once
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from lorimer.adapters._base import Adapter
from lorimer.attachment.survey import Survey
from lorimer.errors import UsageError, suggest
from lorimer.layers.embedding import EmbeddingGeometry, TiedEmbeddingGeometry
from lorimer.layers.linear import LinearGeometry
from lorimer.layers.parameters import MatrixGeometry
from lorimer.layers.sites import Site

CHOICES = ("refuse", "together", "apart")
_ROWS_FIRST = (LinearGeometry, MatrixGeometry)  # the matrix is the weight as it is


def require_choice(tied: str) -> None:
    """Raise `UsageError` for anything else than one of `CHOICES`."""
    if tied not in CHOICES:
        raise UsageError(
            f"tied must be {', '.join(map(repr, CHOICES))}, not {tied!r}.{suggest(str(tied), CHOICES)}"
        )


def one_of_each(model: Survey, selected: Mapping[str, Site]) -> dict[str, Site]:
    """Of the sites that share a weight, one: where there is a choice not an embedding, which sees it
    transposed."""
    return {first: model.sites[first] for first in (_first(model, path) for path in selected)}


def with_sharers(
    model: Survey, planned: Mapping[str, tuple[Site, Adapter]]
) -> dict[str, tuple[Site, Adapter]]:
    """The plan, and every other site that shares a weight with one of it, with the same adapter.

    Raises:
        UsageError: a layer sees the weight from another side, and the adapter acts on one side only.
    """
    found = dict(planned)
    for path, (site, adapter) in planned.items():
        for other in model.tied.get(path, ()):
            shared = _seen_alike(site, model.sites[other], adapter)
            if shared is None:
                raise UsageError(
                    f"{other!r} sees the weight of {path!r} from another side; tied='together' needs an "
                    f"update A, B as plain LoRA has it, without bias, not {adapter.method.name!r}"
                )
            found[other] = (shared, adapter)
    return found


def retied(model: Survey, ready: Mapping[str, tuple[Site, Adapter]]) -> dict[str, tuple[Site, Adapter]]:
    """Adapters as a file holds them: those that are one and the same update of a shared weight, seen from its
    several layers, become one adapter again."""
    found = dict(ready)
    for path, (site, adapter) in ready.items():
        first = _first(model, path)
        if first == path or first not in ready:
            continue
        original = ready[first][1]
        shared = _seen_alike(ready[first][0], site, original)
        if shared is not None and _equal(shared, original, adapter):
            found[path] = (shared, original)
    return found


def _first(model: Survey, path: str) -> str:
    """The one site that stands for all that share a weight."""
    if path not in model.tied:
        return path
    sharers = {path, *model.tied[path]}
    inorder = [each for each in model.sites if each in sharers]
    return next((each for each in inorder if model.sites[each].geometry is not EmbeddingGeometry), inorder[0])


def _seen_alike(site: Site, other: Site, adapter: Adapter) -> Site | None:
    """`other` as an adapter made for `site` sees it; None where the adapter does not fit there."""
    if adapter.method.replaces or other.geometry is site.geometry:
        return other
    if site.geometry in _ROWS_FIRST and other.geometry in _ROWS_FIRST:
        return replace(other, geometry=site.geometry)
    plain = adapter.low_rank() is not None and adapter.state_dict().keys() <= {"A", "B", "A0", "B0"}
    if plain and site.geometry in _ROWS_FIRST and other.geometry is EmbeddingGeometry:
        return replace(other, geometry=TiedEmbeddingGeometry)
    return None


def _equal(shared: Site, original: Adapter, adapter: Adapter) -> bool:
    """Whether `adapter` is what a file holds of `original` at this site."""
    filed = shared.geometry(shared.layer, shared.parameter).filed(original.state_dict())
    own = adapter.state_dict()
    return (
        original.method == adapter.method
        and filed.keys() == own.keys()
        and all(torch.equal(filed[name], own[name]) for name in own)
    )
