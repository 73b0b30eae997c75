"""What we write, loaded by the programs it is written for: their outputs equal ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import LoRA
from tests.tolerances import SAME_NETWORK_OUTPUT, relative_difference
from tests.unit.formats.conftest import MIXED_ALPHAS, MIXED_RANKS, adapt, outputs

# transformers 5 warns when PEFT asks it for a name that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def assert_same_outputs(
    found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], base: tuple[Tensor, ...]
) -> None:
    for one, other, untouched in zip(found, wanted, base, strict=True):
        assert relative_difference(one, other) < SAME_NETWORK_OUTPUT
        assert relative_difference(untouched, other) > 0.05  # the adapter does something


@pytest.mark.parametrize(
    ("format", "ranks", "alphas"),
    [
        ("diffusers", {}, {}),
        ("diffusers", MIXED_RANKS, MIXED_ALPHAS),
        ("kohya", {}, {}),
        # diffusers takes one alpha for a whole kohya file: mixed ones are held to test_kohya.py's reference.
        ("kohya", MIXED_RANKS, {}),
    ],
    ids=["diffusers-even", "diffusers-mixed", "kohya-even", "kohya-mixed-ranks"],
)
def test_diffusers_loads_our_file(
    format: str,
    ranks: dict[str, int],
    alphas: dict[str, float],
    pipeline: Callable[[], Any],
    tmp_path: Path,
) -> None:
    ours, theirs = pipeline(), pipeline()
    base = outputs(ours)
    adapter = adapt(ours, ranks, alphas)
    lorimer.save(adapter, tmp_path / "adapter.safetensors", format=format)
    theirs.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    assert_same_outputs(outputs(theirs), outputs(ours), base)


def test_diffusers_loads_our_file_for_the_unet_alone(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    ours, theirs = pipeline(), pipeline()
    adapter = adapt(ours, targets="re:unet\\..*to_[qkv]")
    lorimer.save(adapter, tmp_path / "adapter.safetensors", format="diffusers")
    theirs.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    for one, other in zip(outputs(theirs), outputs(ours), strict=True):
        assert relative_difference(one, other) < SAME_NETWORK_OUTPUT


def test_peft_loads_our_folders(pipeline: Callable[[], Any], tmp_path: Path) -> None:
    from peft import PeftModel

    ours, theirs = pipeline(), pipeline()
    base = outputs(ours)
    adapter = adapt(ours, MIXED_RANKS, MIXED_ALPHAS)
    lorimer.save(adapter, tmp_path / "adapter", format="peft")
    for part in ("unet", "text_encoder"):
        loaded = PeftModel.from_pretrained(getattr(theirs, part), tmp_path / "adapter" / part)
        # PEFT would only warn of a missing key.
        assert not loaded.load_adapter(tmp_path / "adapter" / part, "again").missing_keys
        setattr(theirs, part, loaded.eval())
    assert_same_outputs(outputs(theirs), outputs(ours), base)


class Nested(nn.Module):
    """A module whose layers' names end like each other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.block = nn.ModuleDict({"fc": nn.Linear(6, 6), "fc_2": nn.Linear(6, 6), "x": nn.Linear(6, 6)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.fc, self.block["fc"], self.block["fc_2"], self.block["x"]):
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("targets", [["fc"], ["block.fc", "block.fc_2", "block.x"], "all-linear"], ids=str)
def test_peft_builds_just_our_layers(targets: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    torch.manual_seed(0)
    ours = Nested()
    theirs = Nested()
    theirs.load_state_dict(ours.state_dict())
    wanted = [
        path
        for path in ("fc", "block.fc", "block.fc_2", "block.x")
        if targets == "all-linear" or path in targets
    ]
    adapter = lorimer.attach(
        ours,
        LoRA(rank=2, alpha=3),
        [f"re:{path}" for path in wanted],
        rank_pattern={f"re:{wanted[0]}": 1},
        alpha_pattern={f"re:{wanted[-1]}": 0.7},
    )
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    lorimer.save(adapter, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    built = {
        name.split(".lora_A")[0] for name, _ in loaded.base_model.model.named_modules() if ".lora_A.d" in name
    }
    assert built == set(wanted)
    x = torch.randn(3, 6)
    assert relative_difference(loaded(x), ours(x)) < SAME_NETWORK_OUTPUT
