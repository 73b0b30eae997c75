"""What every method must hold on every layer in every precision. A new method or layer joins by existing."""

from __future__ import annotations

import copy
import inspect
import itertools

import pytest
import torch
from torch import nn

import lorimer
from lorimer import registry
from lorimer.adapters._base import Adapter, Method
from lorimer.errors import LorimerError, StateError
from lorimer.layers.geometry import Geometry
from lorimer.layers.host import Host, folded_parameter, folded_parameters, sites
from lorimer.ops.files import attach_state
from tests.contracts.layer_cases import LAYERS, LayerCase
from tests.tolerances import SAME_GRADIENT, SAME_OUTPUT, relative_difference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
METHODS = registry.names("method")


def method(name: str, rank: int = 3, alpha: float = 5.0) -> Method:
    """A method with alpha != rank, so that a lost scale shows."""
    plugin = registry.get("method", name)
    return plugin(rank=rank, alpha=alpha) if plugin.ranked else plugin()


def base_of(layer: nn.Module) -> Geometry:
    """The adapted layer as its adapters see it."""
    (site,) = sites(layer).values()
    return site.geometry(layer)


def perturb(model: nn.Module, seed: int = 2) -> None:
    """Move every adapter parameter off its start."""
    torch.manual_seed(seed)
    for adapter in lorimer.attached(model).values():
        for parameter in adapter.parameters():
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.3)


def adapted(case: LayerCase, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model with one adapter off its start."""
    model = case.model(dtype)
    lorimer.attach(model, method(name), targets=type(model[0]))
    perturb(model)
    return model


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def check_fresh_is_base(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    model, x = case.model(dtype), case.input(dtype)
    before = model(x)
    lorimer.attach(model, method(name), targets=type(model[0]))
    assert torch.equal(model(x), before)


def check_trained_differs(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    model, x = adapted(case, name, dtype), case.input(dtype)
    with lorimer.disabled(model):
        base = model(x)
    assert not torch.equal(model(x), base)


def check_disabled_is_base(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    model, x = case.model(dtype), case.input(dtype)
    before = model(x)
    lorimer.attach(model, method(name), targets=type(model[0]))
    perturb(model)
    live = model(x)
    with lorimer.disabled(model):
        assert torch.equal(model(x), before)
    with lorimer.strength(model, 0.0):
        assert torch.equal(model(x), before)
    assert torch.equal(model(x), live)


def check_quick_path_is_adapt(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    model, x = adapted(case, name, dtype), case.input(dtype)
    layer = model[0]
    with lorimer.strength(model, 0.7):
        truth = base_of(layer).apply(*folded_parameters(layer), x)
        assert relative_difference(model(x), truth) <= SAME_OUTPUT[dtype]


def check_merged_is_live(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    model, x = adapted(case, name, dtype), case.input(dtype)
    live = model(x)
    lorimer.merge(model)
    assert type(model[0]) is type(case.make())
    assert relative_difference(model(x), live) <= SAME_OUTPUT[dtype]
    assert list(model.state_dict()) == list(case.model(dtype).state_dict())
    with pytest.raises(StateError):
        lorimer.merge(model)
    lorimer.unmerge(model)
    assert torch.equal(model(x), live)


def check_thousand_merges_to_the_bit(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    model = adapted(case, name, dtype)
    before = bits(model)
    for _ in range(1000):
        lorimer.merge(model)
        lorimer.unmerge(model)
    assert same_bits(before, bits(model))


def check_two_adapters_agree(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    """Live = merged together = merged one by one, in the order of activation."""
    model, x = case.model(dtype), case.input(dtype)
    lorimer.attach(model, method(name), targets=type(model[0]), name="a")
    lorimer.attach(model, method(name, rank=2, alpha=1.0), targets=type(model[0]), name="ab")
    perturb(model)
    lorimer.attached(model)["ab"].strength = -0.5
    live = model(x)
    one_by_one = copy.deepcopy(model)
    lorimer.merge(model)
    together = model(x)
    with lorimer.enabled(one_by_one, "a"):
        first = folded_parameter(one_by_one[0], "weight").detach()
    with torch.no_grad():
        one_by_one[0].weight.copy_(first)
    with lorimer.enabled(one_by_one, "ab"):
        singly = one_by_one(x)
    assert relative_difference(live, together) <= SAME_OUTPUT[dtype]
    assert relative_difference(live, singly) <= SAME_OUTPUT[dtype]


def check_detach_leaves_nothing(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    model, x = case.model(dtype), case.input(dtype)
    model[0].weight.requires_grad_(False)
    before, output = bits(model), model(x)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    attributes = set(vars(model[0])) | set(vars(model))
    lorimer.attach(model, method(name), targets=type(model[0]), name="a")
    lorimer.attach(model, method(name), targets=type(model[0]), name="ab")
    perturb(model)
    lorimer.detach(model, "a")
    assert list(lorimer.attached(model)) == ["ab"]
    lorimer.detach(model)
    assert type(model[0]) is type(case.make())
    assert torch.equal(model(x), output) and same_bits(before, bits(model))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert set(vars(model[0])) | set(vars(model)) == attributes
    assert not [module for module in model.modules() if isinstance(module, Host | Adapter)]


def check_training_moves_all_and_only_adapters(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    model, x = case.model(dtype), case.input(dtype)
    base = bits(model)
    adapter = lorimer.attach(model, method(name), targets=type(model[0]))
    start = {key: value.detach().clone() for key, value in adapter.named_parameters()}
    assert {key for key, value in model.named_parameters() if value.requires_grad} == {
        f"{path}.lorimer.weight.adapter_default.{tensor}"
        for path, each in adapter.layers.items()
        for tensor, _ in each.named_parameters()
    }
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x).float() - 1).square().mean().backward()
        optimizer.step()
    for key, value in adapter.named_parameters():
        assert not torch.equal(value, start[key]), f"{key} did not move"
    after = bits(model)
    assert same_bits(base, {key: after[key] for key in base})


def check_gradients_equal_adapt(case: LayerCase, name: str) -> None:
    """The quick path's gradients against autograd through the adapted weight, in float64."""
    model, x = adapted(case, name, torch.float64), case.input(torch.float64).requires_grad_()
    layer, parameters = model[0], list(lorimer.attached(model)["default"].parameters())
    quick = torch.autograd.grad(model(x).square().sum(), [x, *parameters])
    truth_output = base_of(layer).apply(*folded_parameters(layer), x)
    truth = torch.autograd.grad(truth_output.square().sum(), [x, *parameters])
    for left, right in zip(quick, truth, strict=True):
        assert relative_difference(left, right) <= SAME_GRADIENT


def check_state_round_trip(case: LayerCase, name: str, dtype: torch.dtype) -> None:
    model, x = adapted(case, name, dtype), case.input(dtype)
    state = lorimer.attached(model)["default"].state()
    other = case.model(dtype)
    torch.manual_seed(99)
    attach_state(other, state, name="another")
    assert torch.equal(model(x), other(x))


def check_nan_never_merges(case: LayerCase, name: str, bad: float) -> None:
    model = adapted(case, name)
    with torch.no_grad():
        next(lorimer.attached(model)["default"].parameters()).view(-1)[0] = bad
    before = model[0].weight.detach().clone()
    with pytest.raises(LorimerError, match="NaN or infinity"):
        lorimer.merge(model)
    assert torch.equal(model[0].weight, before) and isinstance(model[0], Host)


def check_deepcopy_is_independent(case: LayerCase, name: str) -> None:
    model, x = adapted(case, name), case.input(torch.float32)
    live = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), live)
    perturb(twin, seed=7)
    assert torch.equal(model(x), live) and not torch.equal(twin(x), live)


def check_compiles_without_graph_breaks(case: LayerCase, name: str) -> None:
    model, x = adapted(case, name), case.input(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert relative_difference(compiled(x), model(x)) <= SAME_OUTPUT[torch.float32]


def check_autocast(case: LayerCase, name: str) -> None:
    model, x = adapted(case, name), case.input(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert relative_difference(output.float(), model(x)) <= SAME_OUTPUT[torch.bfloat16]
    output.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in lorimer.attached(model)["default"].parameters())


# Every `check_*` above becomes tests over methods x layers x whatever else it asks for.
_SLOW_ON_FEW = {"check_thousand_merges_to_the_bit": ("linear", "conv-groups")}
_ARGUMENTS = {"name": METHODS, "dtype": DTYPES, "bad": [float("nan"), float("inf")]}


def cases(methods: list[str] = METHODS) -> list[object]:
    """pytest parameters (check, keyword arguments) for `methods`."""
    found = []
    for check_name, check in sorted(globals().items()):
        if not check_name.startswith("check_"):
            continue
        wanted = [key for key in inspect.signature(check).parameters if key != "case"]
        layers = [case for case in LAYERS if case.name in _SLOW_ON_FEW.get(check_name, [case.name])]
        options = [methods if key == "name" else _ARGUMENTS[key] for key in wanted]
        for case, *values in itertools.product(layers, *options):
            name = values[wanted.index("name")]
            if "merge" in check_name and not registry.get("method", name).mergeable:
                continue
            label = "-".join([check_name.removeprefix("check_"), case.name, *map(str, values)])
            found.append(
                pytest.param(check, {"case": case, **dict(zip(wanted, values, strict=True))}, id=label)
            )
    return found


@pytest.mark.parametrize(("check", "arguments"), cases())
def test_adapter_contract(check, arguments) -> None:
    check(**arguments)
