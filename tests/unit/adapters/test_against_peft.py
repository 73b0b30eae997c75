"""The same tensors give the same layer in PEFT: names, shapes, orientation, scale and maths agree, and each
program reads the other's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lokr.layer import factorization
from torch import nn

import lorimer
from lorimer.adapters._base import Method
from lorimer.adapters.hira import HiRA
from lorimer.adapters.ia3 import IA3
from lorimer.adapters.loha import LoHa
from lorimer.adapters.lokr import LoKr, split
from lorimer.adapters.miss import MiSS
from lorimer.adapters.oft import OFT
from lorimer.adapters.vera import VeRA
from tests.tolerances import SAME_OUTPUT, relative_difference

LAYERS = {
    "linear": (lambda: nn.Linear(12, 18), (5, 12)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
    "embedding": (lambda: nn.Embedding(14, 6), (3, 4)),
}


@dataclass(frozen=True)
class Pair:
    """A method and PEFT's config of the same; `layers` are those of `LAYERS` that PEFT has it for, and
    `by_weight` those where PEFT's own forward is another function than its merged weight."""

    ours: Method
    theirs: peft.PeftConfig
    layers: tuple[str, ...] = ("linear", "conv")
    by_weight: tuple[str, ...] = ()


_EVERY: dict[str, Any] = {"target_modules": ["layer"], "init_weights": False}
_LOW_RANK: dict[str, Any] = {"r": 2, "alpha": 3, **_EVERY}
PAIRS = {
    "loha": Pair(LoHa(2, 3), peft.LoHaConfig(**_LOW_RANK)),
    "loha-tucker": Pair(LoHa(2, 3, tucker=True), peft.LoHaConfig(use_effective_conv2d=True, **_LOW_RANK)),
    "lokr": Pair(LoKr(2, 3), peft.LoKrConfig(**_LOW_RANK)),
    "lokr-factor": Pair(
        LoKr(2, 3, factor=2, tucker=True),
        peft.LoKrConfig(decompose_factor=2, use_effective_conv2d=True, **_LOW_RANK),
    ),
    "lokr-both": Pair(
        LoKr(1, 2, factor=6, decompose_both=True),
        peft.LoKrConfig(r=1, alpha=2, decompose_factor=6, decompose_both=True, **_EVERY),
    ),
    "ia3": Pair(IA3(), peft.IA3Config(target_modules=["layer"], feedforward_modules=[])),
    "ia3-input": Pair(
        IA3(on="input"), peft.IA3Config(target_modules=["layer"], feedforward_modules=["layer"])
    ),
    "oft": Pair(
        OFT(block_size=6),
        peft.OFTConfig(oft_block_size=6, use_cayley_neumann=False, **_EVERY),
        by_weight=("conv",),
    ),
    "oft-series": Pair(
        OFT(block_size=4, neumann_terms=5), peft.OFTConfig(oft_block_size=4, **_EVERY), by_weight=("conv",)
    ),
    "oft-long-series": Pair(
        OFT(block_size=4, neumann_terms=7),
        peft.OFTConfig(oft_block_size=4, num_cayley_neumann_terms=7, **_EVERY),
        layers=("linear",),
    ),
    "miss": Pair(MiSS(5), peft.MissConfig(r=5, **_EVERY), layers=("linear",)),
    "hira": Pair(
        HiRA(2), peft.HiraConfig(r=2, target_modules=["layer"]), layers=("linear", "conv", "embedding")
    ),
}


def one_layer(layer: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"layer": LAYERS[layer][0]()})


CASES = pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, pair in PAIRS.items() for layer in pair.layers]
)


@CASES
def test_same_tensors_same_layer(name: str, layer: str) -> None:
    pair, ours = PAIRS[name], one_layer(layer)
    theirs = peft.get_peft_model(one_layer(layer), pair.theirs)
    move(theirs)
    adapter = lorimer.attach(ours, pair.ours, "layer")
    dialect = "peft-embedding" if layer == "embedding" else "peft"
    names = {each[dialect]: own for own, each in type(pair.ours).tensors.items() if dialect in each}
    tensors = {
        names[key.removeprefix("base_model.model.layer.")]: tensor
        for key, tensor in peft.get_peft_model_state_dict(theirs).items()
    }
    adapter.layers["layer"].load_state_dict(tensors)
    expected, found = outputs(pair, layer, theirs, ours)
    with lorimer.disabled(ours):
        assert relative_difference(*outputs(pair, layer, theirs, ours)) > 1e-3
    assert relative_difference(found, expected) <= SAME_OUTPUT[torch.float32]


def outputs(
    pair: Pair, layer: str, theirs: peft.PeftModel, ours: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """What PEFT's layer and ours give for the same input."""
    torch.manual_seed(2)
    shape = LAYERS[layer][1]
    x = torch.randint(14, shape) if layer == "embedding" else torch.randn(shape)
    model = theirs.merge_and_unload() if layer in pair.by_weight else theirs.base_model.model
    return model["layer"](x), ours["layer"](x)


def move(model: nn.Module) -> None:
    """Take what is trained off its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


@CASES
def test_peft_reads_our_folder(name: str, layer: str, tmp_path: Path) -> None:
    pair, ours = PAIRS[name], one_layer(layer)
    adapter = lorimer.attach(ours, pair.ours, "layer")
    move(ours)
    lorimer.save(adapter, tmp_path / "adapter", format="peft")
    theirs = peft.PeftModel.from_pretrained(one_layer(layer), tmp_path / "adapter")
    assert relative_difference(*outputs(pair, layer, theirs, ours)) <= SAME_OUTPUT[torch.float32]


@CASES
def test_we_read_a_folder_of_peft(name: str, layer: str, tmp_path: Path) -> None:
    pair, ours = PAIRS[name], one_layer(layer)
    theirs = peft.get_peft_model(one_layer(layer), pair.theirs)
    move(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    lorimer.load(ours, tmp_path / "adapter")
    assert relative_difference(*outputs(pair, layer, theirs, ours)) <= SAME_OUTPUT[torch.float32]


def test_vera_draws_the_projections_that_peft_draws() -> None:
    config = peft.VeraConfig(r=7, projection_prng_key=5, target_modules=["layer"], init_weights=False)
    theirs, ours = peft.get_peft_model(one_layer("linear"), config), one_layer("linear")
    adapter = lorimer.attach(ours, VeRA(7, seed=5), "layer").layers["layer"]
    layer = theirs.base_model.model["layer"]
    assert torch.equal(adapter.A, layer.vera_A["default"])
    assert torch.equal(adapter.B, layer.vera_B["default"])
    with torch.no_grad():
        adapter.d.copy_(layer.vera_lambda_d["default"])
        adapter.b.copy_(layer.vera_lambda_b["default"])
    x = torch.randn(5, 12)
    assert relative_difference(ours["layer"](x), layer(x)) <= SAME_OUTPUT[torch.float32]


def test_lokr_splits_as_peft_does() -> None:
    for side in range(1, 130):
        for factor in (-1, *range(1, 20)):
            assert split(side, factor) == factorization(side, factor), (side, factor)
