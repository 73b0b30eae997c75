"""Layers that run another forward than torch's: a subclass's, or one that somebody put on the object."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

import lorimer
from lorimer import LoRA, registry
from lorimer.errors import TargetError, UsageError
from tests.contracts.adapted_models import perturb
from tests.contracts.method_cases import METHODS
from tests.tolerances import SAME_NETWORK_OUTPUT, relative_difference


class ScaledEmbedding(nn.Embedding):
    """As in Gemma and BART."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3.0


class StandardisedConv2d(nn.Conv2d):
    """As in BiT and other networks with normalised weights."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class SquashedLinear(nn.Linear):
    """Not additive in its weight, nor in its bias."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh(super().forward(input))


class PaddedConv1d(nn.Conv1d):
    """Pads by itself, to look back in time alone."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (2, 0)))


OWN = {
    "embedding": (lambda: ScaledEmbedding(9, 6), torch.arange(9)[None]),
    "standardised": (lambda: StandardisedConv2d(4, 6, 3), torch.randn(2, 4, 5, 5)),
    "squashed": (lambda: SquashedLinear(6, 8), torch.randn(4, 6)),
    "padded": (lambda: PaddedConv1d(4, 6, 3), torch.randn(2, 4, 7)),
}


@pytest.mark.parametrize("method", ["lora", "lora+bias", "dora", "loha", "ia3", "full"])
@pytest.mark.parametrize("kind", OWN)
def test_a_forward_of_the_layers_own_runs_with_the_adapted_weight(kind, method) -> None:
    make, x = OWN[kind]
    if method == "lora+bias" and kind == "embedding":
        return  # it has none
    torch.manual_seed(0)
    model = nn.Sequential(make())
    before = model(x).detach()
    adapter = lorimer.attach(model, METHODS[method], "0")
    perturb(model)
    live = model(x)
    live.square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert not torch.equal(live, before)
    with lorimer.disabled(model):
        assert torch.equal(model(x), before)
    lorimer.merge(model)
    assert relative_difference(model(x), live) <= SAME_NETWORK_OUTPUT
    lorimer.unmerge(model)
    lorimer.detach(model)
    assert type(model[0]) is type(make()) and torch.equal(model(x), before)


def hooked(model: nn.Module) -> nn.Module:
    """As accelerate leaves a model that it spreads over several devices."""
    for layer in model:
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
    return model


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))


@pytest.mark.parametrize("hooked_first", [True, False])
@pytest.mark.parametrize("method", ["lora", "dora", "loha"])
def test_adapters_act_under_the_hooks_that_spread_a_model_over_devices(method, hooked_first) -> None:
    x, plain, model = torch.randn(3, 6), network(), network()
    for one in (plain, hooked(model) if hooked_first else model):
        torch.manual_seed(1)
        lorimer.attach(one, registry.get("method", method)(rank=2, alpha=4))
        perturb(one)
    if not hooked_first:
        hooked(model)
    expected = plain(x)
    assert torch.equal(model(x), expected) and torch.equal(copy.deepcopy(model)(x), expected)
    lorimer.merge(model)
    lorimer.merge(plain)
    assert torch.equal(model(x), plain(x))
    lorimer.unmerge(model)
    assert torch.equal(model(x), expected)
    for layer in model:
        remove_hook_from_module(layer)
    assert torch.equal(model(x), expected)
    lorimer.detach(model)
    assert torch.equal(model(x), network()(x))


def test_a_forward_put_on_the_layer_itself_runs_with_the_adapted_weight() -> None:
    model, x = network(), torch.randn(3, 6)
    own = model[0].forward
    model[0].forward = lambda input: own(input) * 2.0
    lorimer.attach(model, LoRA(rank=2), "0")
    perturb(model)
    live = model(x)
    lorimer.merge(model)
    assert relative_difference(model(x), live) <= SAME_NETWORK_OUTPUT


def test_a_layer_whose_weight_is_offloaded_is_refused() -> None:
    model = cpu_offload(network(), execution_device=torch.device("cpu"))
    with pytest.raises(TargetError, match="'0' is offloaded"):
        lorimer.attach(model, LoRA(rank=2))


def test_a_weight_of_8_bit_floats_is_refused() -> None:
    model = network()
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(TargetError, match="'0' holds its weight as float8_e4m3fn"):
        lorimer.attach(model, LoRA(rank=2), "0")


def test_copies_for_several_devices_in_one_process_are_refused() -> None:
    model = network()
    lorimer.attach(model, LoRA(rank=2))
    with pytest.raises(UsageError, match="start one process for each device"):
        model[0]._replicate_for_data_parallel()
