"""Starts that look at the weight: what they are, and that nothing but the adapter knows of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import lorimer
from lorimer import LoRA
from lorimer.adapters._starts import STARTS, balanced, principal
from lorimer.adapters.lora import LoRAAdapter
from lorimer.errors import UsageError
from tests.tolerances import NEARLY_BEST, SAME_GRADIENT, SAME_OUTPUT, relative_difference

SHIFTING = [name for name, start in STARTS.items() if start.shifts]
RANK, ALPHA = 4, 6.0


class Net(nn.Module):
    """A Linear and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(12, 9)
        self.conv = nn.Conv2d(4, 6, 3, groups=2)

    def forward(self, x: Tensor, picture: Tensor) -> Tensor:
        return self.fc(x).sum() + self.conv(picture).square().sum()


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, picture = torch.randn(5, 12, generator=generator), torch.randn(2, 4, 6, 6, generator=generator)
    return x.to(dtype), picture.to(dtype)


def started(model: nn.Module, start: str, name: str = "default", **fields: object) -> lorimer.AttachedAdapter:
    torch.manual_seed(3)
    return lorimer.attach(
        model,
        LoRA(rank=RANK, alpha=ALPHA, start=start, **fields),  # type: ignore[arg-type]
        targets=["fc", "conv"],
        name=name,
    )


def perturb(adapter: lorimer.AttachedAdapter) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def beginning(adapter: lorimer.AttachedAdapter, path: str) -> Tensor:
    """scale · B·A as it is now, (out, in)."""
    layer = adapter.layers[path]
    assert isinstance(layer, LoRAAdapter)
    return (layer.scale * layer.B.flatten(1) @ layer.A.flatten(1)).detach()


@pytest.mark.parametrize("start", STARTS)
def test_a_fresh_adapter_changes_no_weight_and_no_output(start: str) -> None:
    model = Net()
    weights, output = copy.deepcopy(model.state_dict()), model(*inputs())
    started(model, start)
    assert relative_difference(model(*inputs()), output) <= SAME_OUTPUT[torch.float32]
    lorimer.detach(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("start", SHIFTING)
def test_another_adapter_is_what_it_is_without(start: str) -> None:
    """Elsewhere such a start changes the base under everybody's feet (peft#1626, #2184)."""
    model = Net()
    perturb(started(model, "kaiming", name="other"))
    alone = model(*inputs())
    started(model, start, name="shifting")
    with lorimer.enabled(model, "other"):
        assert torch.equal(model(*inputs()), alone)


@pytest.mark.parametrize("start", SHIFTING)
def test_it_is_a_plain_lora_of_twice_the_rank(start: str) -> None:
    model = Net().double()
    adapter = started(model, start)
    perturb(adapter)
    state = adapter.state()
    for path, layer in state.layers.items():
        up, down = LoRA.factors(layer, state.config)
        weight = model.get_submodule(path).weight.detach().flatten(1)
        assert (up.shape[1], down.shape[0]) == (2 * RANK, 2 * RANK)
        difference = relative_difference(up @ down, adapter.layers[path].adapt(weight) - weight)
        assert difference <= SAME_OUTPUT[torch.float64]


@pytest.mark.parametrize("start", SHIFTING)
def test_a_loaded_adapter_counts_from_the_same_start(start: str, tmp_path: Path) -> None:
    model = Net()
    adapter = started(model, start)
    perturb(adapter)
    lorimer.save(adapter, tmp_path / "a.safetensors", format="lorimer")
    other = Net()
    torch.manual_seed(99)
    lorimer.load(other, tmp_path / "a.safetensors")
    assert torch.equal(other(*inputs()), model(*inputs()))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_training_is_that_of_the_paper(start: str) -> None:
    """In float64, five steps of gradient descent against W - s·B0·A0 + s·B·A with a changed base."""
    model = Net().double()
    adapter = started(model, start)
    layer = adapter.layers["fc"]
    assert isinstance(layer, LoRAAdapter)
    A = layer.A.detach().clone().requires_grad_()
    B = layer.B.detach().clone().requires_grad_()
    residual = model.fc.weight.detach() - layer.scale * (B @ A).detach()
    x, _ = inputs(torch.float64)
    target = x[:, :9].sin()
    ours = torch.optim.SGD([layer.A, layer.B], lr=0.02)
    theirs = torch.optim.SGD([A, B], lr=0.02)
    for _ in range(5):
        (model.fc(x) - target).square().mean().backward()
        output = x @ (residual + layer.scale * B @ A).T + model.fc.bias
        (output - target).square().mean().backward()
        assert relative_difference(layer.A.grad, A.grad) <= SAME_GRADIENT
        assert relative_difference(layer.B.grad, B.grad) <= SAME_GRADIENT
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_start_is_pefts(start: str, rslora: bool) -> None:
    model = Net()
    adapter = started(model, start, rslora=rslora)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["fc"], init_lora_weights=start, use_rslora=rslora
    )
    layer = get_peft_model(Net(), config).base_model.model.fc
    theirs = layer.get_delta_weight("default").detach()
    assert relative_difference(beginning(adapter, "fc"), theirs) <= SAME_OUTPUT[torch.float32]
    own = adapter.layers["fc"]
    assert isinstance(own, LoRAAdapter)
    for mine, other in ((own.A, layer.lora_A.default.weight), (own.B, layer.lora_B.default.weight)):
        assert relative_difference(mine.detach().abs(), other.detach().abs()) <= SAME_OUTPUT[torch.float32]


def test_pissa_is_the_best_part_of_its_rank() -> None:
    model = Net()
    adapter = started(model, "pissa")
    for path in ("fc", "conv"):
        weight = model.get_submodule(path).weight.detach().flatten(1)
        rest = torch.linalg.svdvals(weight)[RANK:].square().sum().sqrt()
        off = torch.linalg.matrix_norm(weight - beginning(adapter, path))
        assert relative_difference(off, rest) <= SAME_OUTPUT[torch.float32]  # Eckart-Young


def test_the_fast_pissa_is_nearly_the_exact_one() -> None:
    torch.manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(60, 40))
    V, _ = torch.linalg.qr(torch.randn(40, 40))
    S = torch.arange(1, 41).float() ** -0.7  # a slow fall, as weights have
    matrix = U * S @ V.T
    lost = []
    for fast in (False, True):
        A, B = balanced(*principal(matrix, 4, fast), 1.5)
        lost.append(torch.linalg.matrix_norm(matrix - 1.5 * B @ A).item())
    assert lost[0] < lost[1] <= lost[0] * (1 + NEARLY_BEST)


def test_half_precision_weights_are_decomposed_in_float32() -> None:
    model = Net().bfloat16()
    adapter = started(model, "pissa")
    weight = model.fc.weight.detach().float()
    U, S, Vh = torch.linalg.svd(weight)
    exact = U[:, :RANK] * S[:RANK] @ Vh[:RANK]
    assert relative_difference(beginning(adapter, "fc"), exact) <= SAME_OUTPUT[torch.float32]


def test_orthogonal_factors_cancel_and_neither_is_zero() -> None:
    adapter = started(Net().double(), "orthogonal")
    layer = adapter.layers["fc"]
    assert isinstance(layer, LoRAAdapter)
    norms = layer.A.norm() * layer.B.norm()
    assert norms > 0.1
    assert beginning(adapter, "fc").abs().max() <= SAME_OUTPUT[torch.float64] * norms


@pytest.mark.parametrize("start", SHIFTING)
def test_what_is_left_of_a_rank_beyond_the_weights_own_learns_too(start: str) -> None:
    model = nn.Sequential(nn.Linear(7, 3))
    torch.manual_seed(0)
    adapter = lorimer.attach(model, LoRA(rank=5, start=start), targets="all-linear")
    layer = adapter.layers["0"]
    assert isinstance(layer, LoRAAdapter)
    model(torch.randn(4, 7)).square().sum().backward()
    assert layer.B.grad is not None
    assert (layer.B.grad.abs().sum(0) > 0).all()


def test_a_stack_of_experts_starts_one_by_one() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 6, 5))

    model = Experts()
    adapter = lorimer.attach(model, LoRA(rank=2, alpha=3.0, start="pissa"), targets="up")
    layer = adapter.layers["up"]
    assert isinstance(layer, LoRAAdapter)
    for expert, A, B in zip(model._parameters["up"], layer.A, layer.B, strict=True):
        U, S, Vh = torch.linalg.svd(expert.detach())
        exact = U[:, :2] * S[:2] @ Vh[:2]
        assert relative_difference(layer.scale * B @ A, exact) <= SAME_OUTPUT[torch.float32]


def test_a_negative_alpha_starts_at_the_same_part() -> None:
    model = Net()
    adapter = lorimer.attach(model, LoRA(rank=RANK, alpha=-2.0, start="pissa"), targets="fc")
    other = lorimer.attach(Net(), LoRA(rank=RANK, start="pissa"), targets="fc")
    difference = relative_difference(beginning(adapter, "fc"), beginning(other, "fc"))
    assert difference <= SAME_OUTPUT[torch.float32]


@pytest.mark.parametrize(
    ("method", "spoiled", "message"),
    [
        (LoRA(start="pissa"), True, "'fc': holds NaN"),
        (LoRA(start="pissa", alpha=0.0), False, "'fc': with alpha = 0"),
    ],
)
def test_an_impossible_start_leaves_the_model_as_it_was(method: LoRA, spoiled: bool, message: str) -> None:
    model = Net()
    if spoiled:
        model.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(UsageError, match=message):
        lorimer.attach(model, method, targets=["conv", "fc"])
    assert type(model.conv) is nn.Conv2d and model.conv.weight.requires_grad


def test_an_unknown_start_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match=r"'pisa'\. Did you mean 'pissa'"):
        LoRA(start="pisa")
    with pytest.raises(UsageError, match=r"lorimer\.initialise\(adapter, 'eva', batches\)"):
        LoRA(start="eva")
