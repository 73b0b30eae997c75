"""A base kept in 8 or 4 bits: smaller, close to what it was, and left alone by training."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import lorimer
from lorimer import LoRA
from lorimer.errors import LorimerError, MissingDependencyError, RecipeError, UsageError
from lorimer.layers.quantise import quantise_base, weight_bytes
from lorimer.layers.quantised import dequantised, is_quantised
from lorimer.train.base import fingerprint, require_base_unchanged
from lorimer.train.engine import check, train
from tests.tolerances import KEPT_IN_BITS, relative_difference
from tests.unit.train.small import recipe
from tests.unit.train.test_engine import learned

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # both packages are loud when they are imported
    importlib.import_module("bitsandbytes")
    importlib.import_module("torchao.quantization")

THIS, CPU = __name__, torch.device("cpu")


def base() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 128), nn.Tanh(), nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 1))


def seeded() -> nn.Module:
    torch.manual_seed(0)
    return base().requires_grad_(False)


@pytest.mark.parametrize("precision", ["8bit", "nf4"])
def test_it_is_smaller_and_close(precision: str) -> None:
    model, x = seeded(), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    before = model(x)
    saved = quantise_base(model, precision, CPU, torch.float32)
    assert saved.layers == 1 and is_quantised(model[2]) and type(model[0]) is nn.Linear
    weight = 128 * 256 * 4
    kept = weight * {"8bit": 1 / 4, "nf4": 1 / 8}[precision]
    assert saved.before == weight_bytes(seeded())
    assert kept <= saved.after - (saved.before - weight) <= 1.1 * kept
    assert relative_difference(model(x), before) <= KEPT_IN_BITS[precision]
    assert not torch.equal(model(x), before)
    exact = seeded()[2].weight
    lost = (dequantised(model[2]) - exact).norm() / exact.norm()
    assert saved.error == pytest.approx(lost.item(), rel=1e-4)


def test_spared_layers_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))
    assert quantise_base(model, "8bit", CPU, torch.float32, spared=("1",)).layers == 1
    assert not is_quantised(model[1])


@pytest.mark.parametrize("mixed", ["no", "bf16"])
@pytest.mark.parametrize("precision", ["8bit", "nf4"])
def test_a_run_beside_it_learns_and_changes_nothing_of_it(tmp_path: Path, precision: str, mixed: str) -> None:
    run = recipe(
        tmp_path / "run", "train.steps=30", "train.log_every=10", model=f"{THIS}:base",
        train={"base_precision": precision, "mixed_precision": mixed, "steps": 30, "learning_rate": 0.01},
    )  # fmt: skip
    assert any(f"1 layers kept in {precision}: Sequential takes" in line for line in check(run).lines())
    result = train(run)
    assert result.metrics["loss"] < 6
    assert learned(tmp_path / "run")["2.B"].abs().max() > 0  # the layer beside the quantised weight learns
    lorimer.load(seeded(), result.adapter)


@pytest.mark.parametrize("precision", ["8bit", "nf4"])
def test_gradients_are_the_same_before_and_after_an_evaluation(precision: str) -> None:
    """bitsandbytes packs weights anew on some processors where no gradient is asked for."""
    model = seeded().eval()
    quantise_base(model, precision, CPU, torch.bfloat16)
    adapter = lorimer.attach(model, LoRA(2))
    for number, parameter in enumerate(adapter.parameters()):
        torch.manual_seed(number)
        parameter.data.normal_()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(torch.ones(2, 3, 6)).square().mean().backward()
        return [each.grad.clone() for each in adapter.parameters() if each.grad is not None]

    before = gradients()
    with torch.no_grad():
        model(torch.ones(2, 3, 6))
    after = gradients()
    assert len(before) == 6 and all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("precision", ["8bit", "nf4"])
def test_the_fingerprint_sees_a_changed_quantised_weight(precision: str) -> None:
    model = seeded()
    quantise_base(model, precision, CPU, torch.float32)
    before = fingerprint(model)
    lorimer.attach(model, LoRA(1))
    model.eval()
    model(torch.randn(2, 6))
    require_base_unchanged(model, before)
    weight = model[2]._parameters["weight"]
    packed = weight.qdata if hasattr(weight, "qdata") else weight.data  # type: ignore[union-attr]
    packed.flatten()[:9] ^= 1
    with pytest.raises(LorimerError, match=r"2\.weight \(1 of 6"):
        require_base_unchanged(model, before)


def test_what_cannot_be_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"4bit'\. Did you mean '8bit'"):
        quantise_base(seeded(), "4bit", CPU, torch.float32)
    with pytest.raises(UsageError, match="nf4 needs a plain Linear layer of 128"):
        quantise_base(nn.Linear(3, 4), "nf4", CPU, torch.float32)
    with pytest.raises(RecipeError, match=r"train\.base_precision: nf4 needs"):
        check(recipe(tmp_path, "train.base_precision=nf4"))
    with pytest.raises(RecipeError, match=r"train\.offload: does not go with base_precision nf4"):
        train(recipe(tmp_path, "train.base_precision=nf4", "train.offload=blocks"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(MissingDependencyError, match=r"lorimer\[quantised\]"):
        quantise_base(seeded(), "nf4", CPU, torch.float32)


def test_layers_that_share_a_weight_are_left_alone() -> None:
    model = seeded()
    model.append(nn.Linear(128, 256))
    model[5].weight = model[2].weight
    with pytest.raises(UsageError, match="needs a plain Linear"):
        quantise_base(model, "8bit", CPU, torch.float32)
