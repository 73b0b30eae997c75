"""What we write, loaded by the programs it is written for: their outputs equal ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import LoRA, registry
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


class Classifier(nn.Module):
    """Layers of every kind that PEFT saves in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.words = nn.Embedding(7, 6)
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.fc = nn.Linear(6, 6)
        self.out = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.fc(self.tokens(x) + self.words(x % 7)))
        hidden = hidden + self.conv(hidden[:, None]).sum(1)
        return self.classifier(self.norm(self.out(hidden)))


@pytest.mark.parametrize(
    ("method", "full"),
    [
        ("lora", ["classifier", "norm"]),
        ("lora", {"words": [1, 4]}),
        ("lora", ["fc.bias", "out.bias"]),
        ("dora", ["classifier"]),
    ],
    ids=["heads", "rows", "biases", "dora"],
)
def test_peft_gives_what_was_trained_beside_the_adapter(method: str, full: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    torch.manual_seed(0)
    ours, theirs = Classifier(), Classifier()
    theirs.load_state_dict(ours.state_dict())
    nn.init.normal_(theirs.classifier.weight)  # another random head, as a fresh model has
    x = torch.arange(12).view(2, 6) % 11
    with torch.no_grad():
        if "classifier" not in full:
            theirs.classifier.load_state_dict(ours.classifier.state_dict())
        base = ours(x)
    targets = ["tokens", "fc", "out", "conv"] if method != "dora" else ["fc", "out", "conv"]
    adapter = lorimer.attach(ours, registry.get("method", method)(rank=2, alpha=3), targets, full=full)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    lorimer.save(adapter, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert_same_outputs((loaded(x),), (ours(x),), (base,))
    again = Classifier()
    again.load_state_dict({**Classifier().state_dict(), **_base_of(ours)})
    lorimer.load(again, tmp_path / "adapter")
    assert relative_difference(again(x), ours(x)) < SAME_NETWORK_OUTPUT


def test_we_read_what_peft_saves_beside_the_adapter(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base, ours = Classifier(), Classifier()
    ours.load_state_dict(base.state_dict())
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        use_dora=True,
        target_modules=["fc", "out"],
        modules_to_save=["classifier", "norm"],
        bias="lora_only",
        trainable_token_indices={"words": [2, 5]},
    )
    theirs = get_peft_model(base, config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    lorimer.load(ours, tmp_path / "adapter")
    x = torch.arange(12).view(2, 6) % 11
    assert relative_difference(theirs.eval()(x), ours.eval()(x)) < SAME_NETWORK_OUTPUT


def _base_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".lorimer." not in name}


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
