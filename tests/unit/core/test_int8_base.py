"""A base computed in int8: exact weights, adapters in any order, and nothing left when it is switched off."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import LoRA
from lorimer.errors import UsageError
from lorimer.kernels.int8 import error_bound
from lorimer.layers.int8_base import SMALLEST, int8_layers, set_base_precision
from tests.tolerances import INT8_LAYER, INT8_ROUNDING, SAME_OUTPUT, relative_difference

WIDTH = SMALLEST


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)).requires_grad_(
        False
    )


def inputs() -> Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def perturb(network: nn.Module) -> None:
    """Set every adapter parameter, from a fixed seed."""
    torch.manual_seed(2)
    with torch.no_grad():
        for adapter in lorimer.attached(network).values():
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.1)


def test_only_layers_where_it_pays_and_they_are_within_the_bound() -> None:
    network, x = model(), torch.randn(5, WIDTH)
    exact = network[1](x)
    assert set_base_precision(network, "int8") == int8_layers(network) == ["1"]
    error = (network[1](x) - exact).abs()
    bound = error_bound(x.double(), network[1].weight.double())
    assert error.max() > 0 and (error <= (1 + INT8_ROUNDING) * bound + INT8_ROUNDING).all()


def test_the_order_of_attaching_does_not_matter() -> None:
    first, second, x = model(), model(), inputs()
    set_base_precision(first, "int8")
    base = first(x)
    lorimer.attach(first, LoRA(rank=2))
    lorimer.attach(second, LoRA(rank=2))
    set_base_precision(second, "int8")
    perturb(first)
    perturb(second)
    assert int8_layers(first) == int8_layers(second) == ["1"]
    assert torch.equal(first(x), second(x)) and not torch.equal(first(x), base)
    with lorimer.disabled(first):
        assert torch.equal(first(x), base)


def test_switching_it_off_and_detaching_leave_nothing() -> None:
    network, x = model(), inputs()
    before, attributes, output = copy.deepcopy(network.state_dict()), set(vars(network[1])), network(x)
    set_base_precision(network, "int8")
    lorimer.attach(network, LoRA(rank=2))
    network(x)
    assert set_base_precision(network, "exact") == []
    assert torch.equal(network(x), output)
    set_base_precision(network, "int8")
    lorimer.detach(network)
    assert int8_layers(network) == ["1"] and network.state_dict().keys() == before.keys()
    set_base_precision(network, "exact")
    assert type(network[1]) is nn.Linear and set(vars(network[1])) == attributes
    assert torch.equal(network(x), output)


def test_gradients_of_the_update_are_those_of_the_same_input() -> None:
    """The update is exact: beside an int8 base its gradients differ only by what reaches the layer."""
    gradients = []
    for precision in ("exact", "int8"):
        network = nn.Sequential(nn.Linear(WIDTH, WIDTH)).requires_grad_(False)
        torch.manual_seed(3)
        nn.init.normal_(network[0].weight)
        adapter = lorimer.attach(network, LoRA(rank=2))
        perturb(network)
        set_base_precision(network, precision)
        network(torch.ones(2, WIDTH) * torch.arange(WIDTH)).sum().backward()
        gradients.append([parameter.grad for parameter in adapter.parameters()])
    for exact, int8 in zip(*gradients, strict=True):
        assert torch.equal(exact, int8)


@pytest.mark.parametrize("change", ["in place", "data", "parameter", "merged"])
def test_a_changed_weight_is_seen(change: str) -> None:
    network, x = model(), torch.randn(2, WIDTH)
    layer = network[1]
    set_base_precision(network, "int8")
    lorimer.attach(network, LoRA(rank=2))
    perturb(network)
    layer(x)
    live, new = layer(x), layer.weight.detach() * 2
    if change == "in place":
        layer.weight.copy_(new)
    elif change == "data":
        layer.weight.data = new
    elif change == "parameter":
        layer.weight = nn.Parameter(new, requires_grad=False)
    else:
        lorimer.merge(network)
        assert 0 < relative_difference(layer(x), live) < INT8_LAYER  # it has roundings of its own
        lorimer.unmerge(network)
        assert torch.equal(layer(x), live)
        return
    set_base_precision(fresh := copy.deepcopy(network), "exact")
    set_base_precision(fresh, "int8")
    assert torch.equal(layer(x), fresh[1](x)) and not torch.equal(layer(x), live)


def test_a_trained_weight_is_exact() -> None:
    network, x = model(), torch.randn(2, WIDTH)
    exact = network[1](x)
    set_base_precision(network, "int8")
    network[1].weight.requires_grad_(True)
    assert torch.equal(network[1](x), exact)
    network[1](x).sum().backward()
    assert network[1].weight.grad is not None


def test_copies_and_pickles() -> None:
    network, x = model(), inputs()
    set_base_precision(network, "int8")
    lorimer.attach(network, LoRA(rank=2))
    perturb(network)
    live, file = network(x), io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for twin in (copy.deepcopy(network), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), live) and int8_layers(twin) == ["1"]


def test_convolutions_too() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, stride=2))
    network.requires_grad_(False)
    x = torch.randn(2, WIDTH, 4, 4)
    exact = network(x)
    adapter = lorimer.attach(network, LoRA(rank=2), targets=nn.Conv2d)
    assert set_base_precision(network, "int8") == ["0"]
    assert 0 < relative_difference(network(x), exact) < INT8_LAYER
    perturb(network)
    network(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())
    lorimer.detach(network)
    set_base_precision(network, "exact")
    assert type(network[0]) is nn.Conv2d and torch.equal(network(x), exact)


def test_tied_weights_share_their_copy() -> None:
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).requires_grad_(False)
    network[1].weight = network[0].weight
    set_base_precision(network, "int8")
    assert network[0]._lorimer_int8 is network[1]._lorimer_int8


def test_compiles_without_graph_breaks_and_then_exactly() -> None:
    network, x = model(), inputs()
    lorimer.attach(network, LoRA(rank=2))
    perturb(network)
    exact = network(x)
    set_base_precision(network, "int8")
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert relative_difference(compiled(x), exact) <= SAME_OUTPUT[torch.float32]


def test_refusals() -> None:
    with pytest.raises(UsageError, match="int8"):
        set_base_precision(model(), "int4")
    with pytest.raises(UsageError, match=str(SMALLEST)):
        set_base_precision(nn.Sequential(nn.Linear(4, 4)), "int8")
