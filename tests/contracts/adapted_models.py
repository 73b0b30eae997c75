"""What the tests of adapters share: models with adapters off their start, and the truth about them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import lorimer
from lorimer.adapters._base import Method
from lorimer.adapters._state import AdapterState
from lorimer.layers.host import folded_parameter
from lorimer.layers.sites import sites
from tests.contracts.layer_cases import LayerCase
from tests.tolerances import SAME_OUTPUT, relative_difference


def perturb(model: nn.Module, seed: int = 2, spread: float = 0.3) -> None:
    """Move every adapter parameter off its start."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in lorimer.attached(model).values():
        for parameter in adapter.parameters():
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)


def fresh(case: LayerCase, method: Method, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model with one adapter at its start."""
    model = case.model(dtype)
    lorimer.attach(model, method, case.targets)
    return model


def adapted(case: LayerCase, method: Method, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model with one adapter off its start."""
    model = fresh(case, method, dtype)
    perturb(model)
    return model


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def adapted_values(model: nn.Module) -> dict[tuple[str, str], Tensor]:
    """(layer's path, parameter) -> its value with every live adapter folded in, by `adapt` alone."""
    values = {}
    for site in sites(model).values():
        layer = site.full_name.rpartition(".")[0]
        values[layer, site.parameter] = folded_parameter(site.layer, site.parameter)
        if site.geometry.called and site.layer._parameters.get("bias") is not None:
            values[layer, "bias"] = folded_parameter(site.layer, "bias")
    return values


def truth(model: nn.Module, case: LayerCase, dtype: torch.dtype, *inputs: Tensor) -> Tensor:
    """What a model without lorimer gives whose parameters are the adapted values, differentiable in them."""
    bare = case.model(dtype)
    for (path, parameter), value in adapted_values(model).items():
        layer = bare.get_submodule(path)
        del layer._parameters[parameter]
        setattr(layer, parameter, value)
    return bare(*(inputs or case.inputs(dtype)))


def require_agreement(model: nn.Module, case: LayerCase, dtype: torch.dtype, order: list[str]) -> None:
    """Live = merged together = the last adapter live on what the others were merged into."""
    live = case.run(model, dtype)
    one_by_one = copy.deepcopy(model)
    lorimer.merge(model)
    together = case.run(model, dtype)
    lorimer.unmerge(model)
    with lorimer.enabled(one_by_one, *order[:-1]):
        lorimer.merge(one_by_one)
        values = {
            name: value.detach().clone()
            for name, value in one_by_one.named_parameters()
            if name in dict(case.model(dtype).named_parameters())
        }
        lorimer.unmerge(one_by_one)
    with torch.no_grad():
        for path, value in values.items():
            layer, _, parameter = path.rpartition(".")
            one_by_one.get_submodule(layer)._parameters[parameter].copy_(value)  # type: ignore[union-attr]
    with lorimer.enabled(one_by_one, order[-1]):
        singly = case.run(one_by_one, dtype)
    assert relative_difference(live, together) <= SAME_OUTPUT[dtype]
    assert relative_difference(live, singly) <= SAME_OUTPUT[dtype]


def facts(state: AdapterState) -> object:
    """What a state says beside the values of its tensors."""
    layers = {
        path: (sorted(layer.tensors), layer.rank, layer.alpha, layer.groups, layer.stacked)
        for path, layer in state.layers.items()
    }
    return state.method, state.config, layers, {path: each.rows for path, each in state.full.items()}
