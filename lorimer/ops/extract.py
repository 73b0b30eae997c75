"""A LoRA from a fine-tuned model minus its base, by truncated singular value decomposition."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from lorimer.adapters._state import AdapterState, LayerState, ParameterState
from lorimer.attachment.survey import Survey, survey
from lorimer.attachment.targets import Targets, select
from lorimer.errors import LorimerError, UsageError
from lorimer.layers.sites import Site
from lorimer.ops._derived import Derived, LayerChange
from lorimer.ops._spectrum import EVERYTHING, Keep
from lorimer.ops._updates import approximated, form_of, plain_state
from lorimer.ops._weights import Source, Weights, opened
from lorimer.ops.stored import StoredModel


def extract(
    base: Source,
    tuned: Source,
    targets: Targets = "all-linear",
    *,
    exclude: Targets = (),
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    full: bool = False,
    model: nn.Module | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Derived:
    """The LoRA that makes `tuned` of `base`, as nearly as its ranks allow.

    Layer by layer, so that files larger than memory will do. The decomposition is exact for small layers, and
    randomised for large ones of which little is kept. What differs outside the targets (norms, biases,
    heads) is told in `left_out`, or kept beside the LoRA with `full`.

    Args:
        base, tuned: modules, models in their files, mappings from names to tensors, safetensors files, or
            folders of them.
        targets, exclude: see `lorimer.attachment.targets`.
        rank, energy, error: how much of each layer's difference to keep, see `lorimer.resize`.
        full: keep every other parameter that differs as trained in full.
        model: says which layers there are where neither `base` nor `tuned` does; its weights are not looked
            at, so it may be on the meta device.
        metadata: facts that the adapter carries, such as its family.

    Raises:
        UsageError: nothing says how much to keep or what the layers are, nothing differs, or the two are
            of different models.
        TargetError: a target matches nothing, or something that LoRA cannot adapt.
        FileFormatError: a file is broken, missing or a pickle.
        LorimerError: a difference holds NaN or infinity.
    """
    keep = Keep(rank, energy, error)
    if keep == EVERYTHING:
        raise UsageError("say how much to keep: a rank, an energy (e.g. 0.95) or an error (e.g. 0.1)")
    known = (each.skeleton if isinstance(each, StoredModel) else each for each in (model, base, tuned))
    skeleton = next((each for each in known if isinstance(each, nn.Module)), None)
    if skeleton is None:
        raise UsageError(
            "files do not tell what their layers are; pass model=, which may be on the meta device"
        )
    found = survey(skeleton)
    selected = select(found, targets, exclude)
    layers: dict[str, LayerState] = {}
    changes: dict[str, LayerChange] = {}
    with opened(base, "base") as before, opened(tuned, "tuned") as after:
        _require_present(found, selected, before, after)
        for path, site in selected.items():
            change = _difference(found, site, before, after)
            if bool((change != 0).any()):
                layers[path], changes[path] = _layer(site, change, keep)
        others, left_out = _others(found, selected, before, after, full)
    if not layers and not others:
        raise UsageError("base and tuned are the same in all that is targeted; there is nothing to extract")
    components = tuple(getattr(skeleton, "components", ()))
    like = AdapterState("lora", {}, components=components, metadata=dict(metadata or {}))
    state = plain_state(like, layers, full=others)
    return Derived(state, changes, left_out)


def _layer(site: Site, change: Tensor, keep: Keep) -> tuple[LayerState, LayerChange]:
    """One layer's difference, in the parameter's own shape, as LoRA."""
    geometry = site.geometry(site.layer, site.parameter)
    dtype = geometry.spec().dtype
    update, told = approximated(geometry.to_matrix(change), keep, like=site, bias=None, dtype=dtype)
    return update.layer(), told


def _difference(found: Survey, site: Site, before: Weights, after: Weights) -> Tensor:
    """tuned - base of one parameter."""
    old, new = (weights.read(_name_in(found, site, weights)) for weights in (before, after))
    wanted = site.geometry(site.layer, site.parameter).weight.shape
    if not old.shape == new.shape == wanted:
        raise UsageError(
            f"{site.full_name!r} is {tuple(wanted)} in the model, {tuple(old.shape)} in {before.label} and "
            f"{tuple(new.shape)} in {after.label}; exclude it, or bring them to one shape"
        )
    change = new - old.to(new.device)
    if not torch.isfinite(change).all():
        raise LorimerError(f"{site.full_name!r}: the difference holds NaN or infinity")
    return change.cpu()


def _others(
    found: Survey, selected: dict[str, Site], before: Weights, after: Weights, full: bool
) -> tuple[dict[str, ParameterState], dict[str, float | None]]:
    """What differs beside the targets: (kept in full, left out)."""
    kept: dict[str, ParameterState] = {}
    left_out: dict[str, float | None] = {}
    targeted = {site.full_name for site in selected.values()}
    for name in sorted((before.get.keys() & after.get.keys()) - targeted):
        old, new = before.get[name](), after.get[name]()
        if old.shape == new.shape and torch.equal(old.to(new), new):
            continue
        site = found.sites.get(name.removesuffix(".weight"))
        if full and old.shape == new.shape and site is not None and site.full_name == name:
            kept[name] = ParameterState(new.detach().cpu().clone())
        else:
            left_out[name] = _relative(old, new)
    for name in _further_names(found, targeted, kept.keys() | left_out.keys()):
        kept.pop(name, None)
        left_out.pop(name, None)
    return kept, left_out


def _relative(old: Tensor, new: Tensor) -> float | None:
    """‖new - old‖ / ‖old‖; None where they are of different shapes."""
    if old.shape != new.shape:
        return None
    old, new = old.double(), new.double()
    return ((new - old).norm() / old.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()


def _further_names(found: Survey, targeted: set[str], others: Collection[str]) -> Iterator[str]:
    """The names, beyond one for each, of tied parameters that are carried; a target has the first say."""
    by_name = {site.full_name: path for path, site in found.sites.items()}
    seen: set[str] = set()
    for name in [*targeted, *(name for name in by_name if name in others)]:
        twins = {found.sites[path].full_name for path in found.tied.get(by_name[name], ())}
        if name not in seen:
            seen |= twins
            yield from twins


def _name_in(found: Survey, site: Site, weights: Weights) -> str:
    """What a parameter is called there: files may hold one that is tied under any of its names."""
    others = (found.sites[path].full_name for path in found.tied.get(site.path, ()))
    return next((name for name in itertools.chain([site.full_name], others) if name in weights.get), "")


def _require_present(found: Survey, selected: dict[str, Site], *sources: Weights) -> None:
    for weights in sources:
        missing = [site.full_name for site in selected.values() if not _name_in(found, site, weights)]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UsageError(
                f"{weights.label} lacks {', '.join(map(repr, missing[:5]))}{more}; "
                f"its names begin like {min(weights.get, default='')!r}"
            )
    for site in selected.values():
        form_of(site)  # raises where LoRA cannot adapt it
