"""What every method must hold on every layer in every precision. A new method or layer joins by existing.

Every `check_*` becomes a test for each method and layer. One that asks for a `dtype` runs in all that the
layer knows; one in `_ON_FEW` runs on a few layers only, since it costs more or depends little on them.
Adapters are moved off their start throughout.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lorimer
from lorimer.adapters._base import Adapter, Method
from lorimer.adapters.dora import DoRA
from lorimer.adapters.lora import LoRA
from lorimer.errors import LorimerError, StateError, TargetError, UsageError
from lorimer.layers.host import Host
from lorimer.layers.slots import LayerSlots
from lorimer.ops.files import attach_state
from tests.contracts.adapted_models import (
    adapted,
    bits,
    facts,
    fresh,
    perturb,
    require_agreement,
    same_bits,
    truth,
)
from tests.contracts.layer_cases import LAYERS, LayerCase
from tests.contracts.method_cases import METHODS
from tests.contracts.refusals import is_refused
from tests.tolerances import SAME_GRADIENT, SAME_OUTPUT, relative_difference

HALF = (torch.bfloat16, torch.float16)


def starts_by_cancelling(method: Method) -> bool:
    """Whether the update is zero at the start because terms cancel, and so up to rounding alone."""
    return getattr(method, "shifted", False) or getattr(method, "start", None) == "orthogonal"


def check_fresh_is_base(case: LayerCase, method: Method, dtype: torch.dtype) -> None:
    before, model = case.base(dtype, frozen=case.called), fresh(case, method, dtype)
    if starts_by_cancelling(method):
        assert relative_difference(case.run(model, dtype), before) <= SAME_OUTPUT[dtype]
    else:
        assert torch.equal(case.run(model, dtype), before)


def check_disabled_is_base(case: LayerCase, method: Method, dtype: torch.dtype) -> None:
    before, model = case.base(dtype, frozen=True), adapted(case, method, dtype)
    live = case.run(model, dtype)
    assert not torch.equal(live, before)
    with lorimer.disabled(model):
        assert torch.equal(case.run(model, dtype), before)
    with lorimer.strength(model, 0.0):
        assert torch.equal(case.run(model, dtype), before)
    assert torch.equal(case.run(model, dtype), live)


def check_live_is_adapt(case: LayerCase, method: Method, dtype: torch.dtype) -> None:
    """The quick paths against the adapted weights, at strengths beside 1 and below 0."""
    model = adapted(case, method, dtype)
    for strength in (1.0, 0.7, -1.5):
        with lorimer.strength(model, strength):
            assert (
                relative_difference(case.run(model, dtype), truth(model, case, dtype)) <= SAME_OUTPUT[dtype]
            )


def check_merged_is_live(case: LayerCase, method: Method, dtype: torch.dtype) -> None:
    model, bare = adapted(case, method, dtype), case.model(dtype)
    live = case.run(model, dtype)
    lorimer.merge(model)
    assert relative_difference(case.run(model, dtype), live) <= SAME_OUTPUT[dtype]
    assert list(model.state_dict()) == list(bare.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in bare.modules()]
    with pytest.raises(StateError):
        lorimer.merge(model)
    lorimer.unmerge(model)
    assert torch.equal(case.run(model, dtype), live)


def check_many_merges_to_the_bit(case: LayerCase, method: Method, times: int = 5) -> None:
    """To subtract what was added would drift, in half precision above all."""
    model = adapted(case, method, torch.bfloat16)
    before = bits(model)
    for _ in range(times):
        lorimer.merge(model)
        lorimer.unmerge(model)
    assert same_bits(before, bits(model))


def check_two_adapters_agree(case: LayerCase, method: Method, dtype: torch.dtype) -> None:
    """Live = merged together = merged one by one, in the order of activation."""
    model = case.model(dtype)
    smaller = method.with_rank(2, 1.0) if method.ranked else method
    lorimer.attach(model, method, case.targets, name="a")
    lorimer.attach(model, smaller, case.targets, name="ab")
    perturb(model)
    lorimer.attached(model)["ab"].strength = -0.5
    require_agreement(model, case, dtype, ["a", "ab"])


def check_agrees_with_other_methods(case: LayerCase, method: Method, dtype: torch.dtype) -> None:
    """The same beside an additive method and one that is not, before and after it."""
    for other in (LoRA(rank=2, alpha=3), DoRA(rank=2, alpha=3)):
        model = case.model(dtype)
        lorimer.attach(model, method, case.targets, name="own")
        lorimer.attach(model, other, case.targets, name="other")
        perturb(model)
        for order in (["own", "other"], ["other", "own"]):
            with lorimer.enabled(model, *order):
                require_agreement(model, case, dtype, order)


def check_detach_leaves_nothing(case: LayerCase, method: Method) -> None:
    dtype = torch.float32 if torch.float32 in case.dtypes else torch.float64
    bare, model = case.model(dtype), case.model(dtype)
    next(model.parameters()).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    output = case.run(model, dtype)
    lorimer.attach(model, method, case.targets, name="a")
    lorimer.attach(model, method, case.targets, name="ab")
    perturb(model)
    assert not torch.equal(case.run(model, dtype), output)
    lorimer.detach(model, "a")
    assert list(lorimer.attached(model)) == ["ab"]
    lorimer.detach(model)
    assert same_bits(bits(bare), bits(model))
    assert torch.equal(case.run(model, dtype), output)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [(type(module), set(vars(module))) for module in model.modules()] == [
        (type(module), set(vars(module))) for module in bare.modules()
    ]


def check_training_moves_all_and_only_adapters(case: LayerCase, method: Method, dtype: torch.dtype) -> None:
    model = case.model(dtype)
    base = bits(model)
    adapter = lorimer.attach(model, method, case.targets)
    start = {key: value.detach().clone() for key, value in adapter.named_parameters()}
    trainable = {id(value) for value in model.parameters() if value.requires_grad}
    assert trainable == {id(value) for value in adapter.parameters()}
    fixed = {key: value.clone() for key, value in bits(model).items() if key not in base}
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.02, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (case.run(model, dtype).float() - 1).square().mean()
        loss.backward()
        assert loss.isfinite()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in adapter.parameters())
        optimizer.step()
    for key, value in adapter.named_parameters():
        assert not torch.equal(value, start[key]), f"{key} did not move"
    after, moving = bits(model), {key for key, value in model.named_parameters() if value.requires_grad}
    assert same_bits(base, {key: after[key] for key in base})
    assert all(torch.equal(after[key], value) for key, value in fixed.items() if key not in moving)


def check_gradients_equal_adapt(case: LayerCase, method: Method) -> None:
    """Every gradient of the live model against autograd through the adapted weights, in float64."""
    dtype = torch.float64
    model, inputs = adapted(case, method, dtype), case.inputs(dtype)
    parameters = list(lorimer.attached(model)["default"].parameters())
    wanted = [*(x.requires_grad_() for x in inputs if x.is_floating_point()), *parameters]
    live = torch.autograd.grad(model(*inputs).square().sum(), wanted)
    expected = torch.autograd.grad(truth(model, case, dtype, *inputs).square().sum(), wanted)
    for left, right in zip(live, expected, strict=True):
        assert relative_difference(left, right) <= SAME_GRADIENT


def check_state_round_trip(case: LayerCase, method: Method, dtype: torch.dtype) -> None:
    model, other = adapted(case, method, dtype), case.model(dtype)
    state = lorimer.attached(model)["default"].state()
    torch.manual_seed(99)
    attach_state(other, state, name="another")
    assert torch.equal(case.run(model, dtype), case.run(other, dtype))
    again = lorimer.attached(other)["another"].state()
    assert facts(again) == facts(state)


def check_nan_and_infinity_never_merge(case: LayerCase, method: Method) -> None:
    for bad in (float("nan"), float("inf")):
        model = adapted(case, method)
        with torch.no_grad():
            next(lorimer.attached(model)["default"].parameters()).view(-1)[0] = bad
        before = bits(model)
        with pytest.raises(LorimerError, match="NaN or infinity"):
            lorimer.merge(model)
        after = bits(model)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key].nan_to_num(), after[key].nan_to_num()) for key in before)
        assert any(isinstance(module, Host) for module in model.modules())


def check_deepcopy_is_independent(case: LayerCase, method: Method) -> None:
    model, dtype = adapted(case, method), torch.float32
    live = case.run(model, dtype)
    twin = copy.deepcopy(model)
    assert torch.equal(case.run(twin, dtype), live)
    perturb(twin, seed=7)
    assert torch.equal(case.run(model, dtype), live) and not torch.equal(case.run(twin, dtype), live)
    lorimer.detach(twin)
    assert torch.equal(case.run(model, dtype), live)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def check_compiles_without_graph_breaks(case: LayerCase, method: Method) -> None:
    model, dtype = adapted(case, method), torch.float32
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    parameters = list(lorimer.attached(model)["default"].parameters())
    for training in (True, False):
        model.train(training)
        mine, its = case.run(model, dtype), case.run(compiled, dtype)
        assert relative_difference(mine, its) <= SAME_OUTPUT[dtype]
        if training:
            mine, its = (torch.autograd.grad(output.sum(), parameters) for output in (mine, its))
            for left, right in zip(mine, its, strict=True):
                assert relative_difference(left, right) <= SAME_OUTPUT[dtype]


def check_autocast(case: LayerCase, method: Method) -> None:
    model = adapted(case, method)
    exact = case.run(model, torch.float32)
    for dtype in HALF:
        with torch.autocast("cpu", dtype):
            output = case.run(model, torch.float32)
        assert relative_difference(output.float(), exact) <= SAME_OUTPUT[torch.bfloat16]
        gradients = torch.autograd.grad(
            output.float().sum(), list(lorimer.attached(model)["default"].parameters())
        )
        assert all(gradient.isfinite().all() for gradient in gradients)


def check_gradient_checkpointing(case: LayerCase, method: Method) -> None:
    """The same gradients, whichever way the forward is run again."""
    model, dtype = adapted(case, method, torch.float64), torch.float64
    parameters = list(lorimer.attached(model)["default"].parameters())
    plain = torch.autograd.grad(case.run(model, dtype).square().sum(), parameters)
    inputs = [x.requires_grad_(x.is_floating_point()) for x in case.inputs(dtype)]
    for reentrant in (True, False):
        if reentrant and not any(x.requires_grad for x in inputs):
            continue  # that mode needs an input with a gradient
        output = checkpoint(model, *inputs, use_reentrant=reentrant)
        for parameter in parameters:
            parameter.grad = None
        output.square().sum().backward()
        for parameter, expected in zip(parameters, plain, strict=True):
            assert parameter.grad is not None
            assert relative_difference(parameter.grad, expected) <= SAME_GRADIENT


def check_full_training_beside(case: LayerCase, method: Method) -> None:
    """Another parameter of the same layer trained in full: live, merged, carried along, taken off."""
    dtype = torch.float32
    beside = next(name for name, _ in reversed(list(case.model(dtype).named_parameters())) if "bias" in name)
    model, other, bare = case.model(dtype), case.model(dtype), case.model(dtype)
    adapter = lorimer.attach(model, method, case.targets, full=beside)
    assert beside in adapter.layers
    perturb(model)
    live = case.run(model, dtype)
    assert relative_difference(live, truth(model, case, dtype)) <= SAME_OUTPUT[dtype]
    attach_state(other, adapter.state())
    assert torch.equal(case.run(other, dtype), live)
    lorimer.merge(model)
    assert relative_difference(case.run(model, dtype), live) <= SAME_OUTPUT[dtype]
    lorimer.unmerge(model)
    lorimer.detach(model)
    assert torch.equal(case.run(model, dtype), case.run(bare, dtype))


def check_mixed_rows(case: LayerCase, method: Method, dtype: torch.dtype) -> None:
    """Each row of a batch with its own adapter, or none, is that row run alone; gradients too."""
    if not case.called:
        return
    model = case.model(dtype)
    lorimer.attach(model, method, case.targets, name="a")
    lorimer.attach(model, LoRA(rank=2, alpha=3), case.targets, name="b")
    lorimer.attach(model, method.with_rank(2, None) if method.ranked else method, case.targets, name="c")
    perturb(model)
    lorimer.attached(model)["c"].strength = -0.5
    x = torch.cat([*case.inputs(dtype)] * 3)
    names = list(islice(cycle(["b", "a", None, "c", "a"]), len(x)))
    with lorimer.rows(model, names):
        mixed = model(x)
    singly = []
    for row, name in enumerate(names):
        with lorimer.enabled(model, *([] if name is None else [name])):
            singly.append(model(x[row : row + 1]))
    assert relative_difference(mixed, torch.cat(singly)) <= SAME_OUTPUT[dtype]
    counts_tokens = getattr(case.make(), "scale_grad_by_freq", False)  # gradients depend on the whole batch
    if dtype == torch.float64 and not counts_tokens:
        parameters = [value for value in model.parameters() if value.requires_grad]
        left = torch.autograd.grad(mixed.square().sum(), parameters, materialize_grads=True)
        right = torch.autograd.grad(torch.cat(singly).square().sum(), parameters, materialize_grads=True)
        assert all(relative_difference(*pair) <= SAME_GRADIENT for pair in zip(left, right, strict=True))


def check_rows_are_refused_where_parameters_are_read(case: LayerCase, method: Method) -> None:
    if case.called:
        return
    model, dtype = adapted(case, method, case.dtypes[0]), case.dtypes[0]
    live = case.run(model, dtype)
    with (
        pytest.raises(UsageError, match="rows cannot have different adapters there"),
        lorimer.rows(model, ["default", None]),
    ):
        pass
    assert torch.equal(case.run(model, dtype), live)


def check_refused_cleanly(case: LayerCase, method: Method) -> None:
    model, bare = case.model(torch.float32), case.model(torch.float32)
    with pytest.raises((TargetError, UsageError), match="layer"):
        lorimer.attach(model, method, case.targets)
    assert same_bits(bits(bare), bits(model)) and all(value.requires_grad for value in model.parameters())
    assert not [module for module in model.modules() if isinstance(module, Host | LayerSlots | Adapter)]


Check = Callable[..., None]

_ON_FEW: dict[Check, tuple[str, ...]] = {
    check_many_merges_to_the_bit: ("linear", "conv-groups", "attention-packed"),
    check_compiles_without_graph_breaks: ("linear",),
    check_autocast: ("linear", "conv-3x3", "embedding", "conv2d-transposed"),
    check_gradient_checkpointing: ("linear", "conv-groups", "embedding", "gru", "experts"),
    check_agrees_with_other_methods: ("linear", "conv-3x3", "hugging-face-conv1d", "attention-packed"),
    check_full_training_beside: ("linear", "conv-groups", "conv2d-transposed", "attention-packed", "lstm"),
    check_deepcopy_is_independent: ("linear", "conv2d-transposed", "lstm", "attention-packed", "experts"),
    check_rows_are_refused_where_parameters_are_read: ("attention-packed", "lstm", "experts", "layer-norm"),
    check_nan_and_infinity_never_merge: ("linear", "conv-groups", "embedding", "lstm", "experts"),
}


# A variant of a method meets one layer of each geometry; the method itself meets them all.
_FOR_VARIANTS = (
    "linear",
    "hugging-face-conv1d",
    "embedding-padded",
    "conv-3x3",
    "conv-groups",
    "conv2d-transposed",
    "attention-packed",
    "lstm",
    "experts",
    "layer-norm",
)


def cases(methods: dict[str, Method] = METHODS) -> Iterator[tuple[str, Check, dict[str, Any]]]:
    """(name, check, arguments) of every test."""
    checks = [check for name, check in sorted(globals().items()) if name.startswith("check_")]
    for label, method in methods.items():
        for case in LAYERS:
            if "+" in label and case.name not in _FOR_VARIANTS:
                continue
            refused = is_refused(label, method, case)
            for check in checks:
                if refused is not (check is check_refused_cleanly):
                    continue
                if case.name not in _ON_FEW.get(check, [case.name]):
                    continue
                if "merge" in check.__name__ and not method.mergeable:
                    continue
                name = f"{check.__name__.removeprefix('check_')}-{case.name}-{label}"
                yield name, check, {"case": case, "method": method}


def run(check: Check, case: LayerCase, method: Method) -> None:
    """The check, in every precision where it asks for one."""
    if "dtype" not in inspect.signature(check).parameters:
        check(case, method)
        return
    for dtype in case.dtypes:
        check(case, method, dtype)


_LAYERS = {case.name: case for case in LAYERS}
_CASES = {name: (check, arguments) for name, check, arguments in cases()}


@pytest.mark.parametrize("name", _CASES)
def test_adapter_contract(name: str) -> None:
    check, arguments = _CASES[name]
    run(check, **arguments)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_thousand_merges_leave_every_bit(method: str) -> None:
    check_many_merges_to_the_bit(_LAYERS["linear"], METHODS[method], times=1000)


@pytest.mark.parametrize(
    "layer", ["conv-3x3", "embedding", "conv2d-transposed", "attention-packed", "experts"]
)
def test_other_layers_compile_too(layer: str) -> None:
    check_compiles_without_graph_breaks(_LAYERS[layer], METHODS["lora"])
