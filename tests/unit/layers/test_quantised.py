"""Adapters beside quantised weights, and merging into them."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import LoRA, registry
from lorimer.errors import TargetError
from tests.tolerances import SAME_NETWORK_OUTPUT, SAME_OUTPUT, relative_difference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # both packages are loud when they are imported
    bitsandbytes = importlib.import_module("bitsandbytes")
    torchao = importlib.import_module("torchao.quantization")


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 32)


def bits4(**options: Any) -> nn.Module:
    layer = bitsandbytes.nn.Linear4bit(64, 32, compute_dtype=torch.float32, **options)
    layer.load_state_dict(linear().state_dict())
    return layer.to("cpu")


def bits8() -> nn.Module:
    layer = bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    layer.load_state_dict(linear().state_dict())
    return layer.to("cpu")


def torchao_int8() -> nn.Module:
    holder = nn.Sequential(linear())
    torchao.quantize_(holder, torchao.Int8WeightOnlyConfig())
    return holder[0]


MAKE: dict[str, Callable[[], nn.Module]] = {
    "nf4": lambda: bits4(quant_type="nf4"),
    "fp4-plain-statistics": lambda: bits4(quant_type="fp4", compress_statistics=False),
    "int8": bits8,
    "torchao-int8": torchao_int8,
}
# bitsandbytes' 8-bit layer rounds its input to 8 bits as well, which a merged layer does not.
MERGED = {"int8": 0.02}


def model(kind: str) -> nn.Module:
    torch.manual_seed(1)
    head = nn.Linear(32, 4)
    return nn.Sequential(MAKE[kind](), nn.Tanh(), head).requires_grad_(False)


def x() -> Tensor:
    return torch.randn(3, 64, generator=torch.Generator().manual_seed(2), requires_grad=True)


def trained(kind: str, method: str) -> nn.Module:
    base = model(kind)
    adapter = lorimer.attach(base, registry.get("method", method)(rank=3, alpha=6.0), "0")
    torch.manual_seed(3)
    for parameter in adapter.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return base


def frozen_bits(layer: nn.Module) -> Tensor:
    weight = layer._parameters["weight"]
    assert weight is not None
    return (weight.qdata if hasattr(weight, "qdata") else weight.data).clone()  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("kind", MAKE)
def test_the_algebra_holds_beside_a_quantised_weight(kind, method) -> None:
    base = model(kind)
    before, packed, kept = base(x()), frozen_bits(base[0]), type(base[0])
    adapter = lorimer.attach(base, registry.get("method", method)(rank=3, alpha=6.0), "0")
    if method == "lora":
        assert torch.equal(base(x()), before)
    base = trained(kind, method)
    live = base(x())
    assert relative_difference(live, before) > 0.01
    assert isinstance(base[0], kept)
    with lorimer.disabled(base):
        assert torch.equal(base(x()), before)
    assert torch.equal(copy.deepcopy(base)(x()), live)
    report = lorimer.merge(base)
    assert type(base[0]) is nn.Linear and type(base[0].weight) is nn.Parameter
    assert [key for key in base.state_dict() if key.startswith("0")] == ["0.weight", "0.bias"]
    assert report.notes == ("0.weight was dequantised and is plain float32 now",)
    assert relative_difference(base(x()), live) <= MERGED.get(kind, SAME_NETWORK_OUTPUT)
    lorimer.unmerge(base)
    assert torch.equal(base(x()), live) and torch.equal(frozen_bits(base[0]), packed)
    lorimer.detach(base)
    assert type(base[0]) is kept and torch.equal(base(x()), before)
    assert adapter.method == method


@pytest.mark.parametrize("kind", MAKE)
def test_gradients_reach_the_factors_and_the_input(kind) -> None:
    base, given = trained(kind, "lora"), x()
    base(given).square().sum().backward()
    dense = nn.Sequential(nn.Linear(64, 32), *base[1:])
    geometry = next(iter(lorimer.attached(base)["default"]._sites().values()))
    with torch.no_grad():
        dense[0].weight.copy_(geometry.geometry(base[0]).weight)
        dense[0].bias.copy_(base[0].bias)
    lorimer.attach(dense, LoRA(rank=3, alpha=6.0), "0")
    ours, theirs = lorimer.attached(base)["default"], lorimer.attached(dense)["default"]
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        right.data.copy_(left.data)
    again = x()
    dense(again).square().sum().backward()
    allowed = 0.05 if kind == "int8" else SAME_NETWORK_OUTPUT
    assert relative_difference(given.grad, again.grad) <= allowed
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert left.dtype == torch.float32
        assert relative_difference(left.grad, right.grad) <= allowed


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_in_any_precision_reach_the_factors(kind, dtype) -> None:
    """(batch, tokens, width) in the type that the layer computes in: what a transformer gives it."""
    base = nn.Sequential(trained(kind, "lora")[0])
    if hasattr(base[0], "compute_dtype"):
        base[0].compute_dtype = dtype
    tokens = x().detach().to(dtype).expand(2, 3, 64).clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        base(tokens).float().square().mean().backward()
    assert tokens.grad is not None
    for parameter in lorimer.attached(base)["default"].parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


@pytest.mark.parametrize("kind", MAKE)
def test_merging_for_good_leaves_a_plain_layer(kind) -> None:
    base = trained(kind, "lora")
    live = base(x())
    lorimer.merge(base, keep_original=False)
    assert type(base[0]) is nn.Linear and not lorimer.attached(base)
    assert relative_difference(base(x()), live) <= MERGED.get(kind, SAME_NETWORK_OUTPUT)


def test_an_adapter_trained_beside_a_quantised_weight_loads_beside_the_plain_one(tmp_path) -> None:
    base = trained("nf4", "lora")
    path = lorimer.save(lorimer.attached(base)["default"], tmp_path / "a.safetensors", format="lorimer")
    plain = nn.Sequential(linear(), *copy.deepcopy(base)[1:])
    lorimer.load(plain, path)
    lorimer.load(model("nf4"), path)
    with torch.no_grad():
        plain[0].weight.copy_(lorimer_weight(base))
    assert relative_difference(plain(x()), base(x())) <= SAME_OUTPUT[torch.float32] * 5


def lorimer_weight(base: nn.Module) -> Tensor:
    (site,) = lorimer.attached(base)["default"]._sites().values()
    return site.geometry(site.layer).weight


def test_a_layer_that_is_not_quantised_yet_is_refused() -> None:
    base = nn.Sequential(bitsandbytes.nn.Linear4bit(64, 32))
    with pytest.raises(TargetError, match="not quantised yet; move the model to its device"):
        lorimer.attach(base, LoRA(), "0")
