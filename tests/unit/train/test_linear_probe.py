"""A head that begins as a linear probe: the best there is, for every kind of label, in each such task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorimer.errors import RecipeError
from lorimer.tasks._label_losses import losses
from lorimer.tasks._linear_probe import KNOWN, C, Seen, fit
from lorimer.train.base import fingerprint
from lorimer.train.engine import train
from lorimer.train.order import first_epoch
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.run_folder import RunFolder
from lorimer.train.setup import Setup, build
from tests.contracts.task_cases import CASES
from tests.tiny_images import save_pictures

Change = Callable[[dict[str, Any], Path], None]
PROBE = ("objective.head_start=linear-probe", "train.batch_size=2", "train.checkpoint_every=0")


def doubled(labels: int) -> nn.Module:
    """A network that does more with its head's output."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, labels))

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(32, 32), head[1]

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = 2.0 * self.head(self.body(x).flatten(1)) + 1.0
            return logits

    return Doubled()


def convolved(labels: int) -> nn.Module:
    """A network with a convolution for a head."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 8, 8), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Conv2d(6, labels, 1), nn.Flatten())


def of_pictures(values: dict[str, Any], folder: Path) -> None:
    pass


def of_numbers(values: dict[str, Any], folder: Path) -> None:
    rows = [f"text {number},{number / 4}" for number in range(10)]
    Path(values["data"]["path"]).write_text("\n".join(["text,label", *rows]))


def of_several(values: dict[str, Any], folder: Path) -> None:
    rows = [f'text {number},"{"a,b" if number % 2 else "b"}"' for number in range(10)]
    Path(values["data"]["path"]).write_text("\n".join(["text,label", *rows]))
    values["data"]["kind"] = "multi"


def without_bias(values: dict[str, Any], folder: Path) -> None:
    from tests.tiny_texts import save_tiny_causal

    values["model"] = str(save_tiny_causal(folder / "causal"))


def weighed(values: dict[str, Any], folder: Path) -> None:
    values["objective"] = {"class_weights": "balanced", "label_smoothing": 0.1}


SETTINGS: dict[str, tuple[str, Change]] = {
    "pictures": ("image-classification", of_pictures),
    "texts": ("text-classification", weighed),
    "several labels": ("text-classification", of_several),
    "numbers": ("text-classification", of_numbers),
    "a language model": ("text-classification", without_bias),
}


def recipe(setting: str, folder: Path, *overrides: str) -> Recipe:
    task, change = SETTINGS[setting]
    values = {"task": task, "output": str(folder / "run"), **CASES[task](folder)}
    change(values, folder)
    return load_recipe(values, [*PROBE, *overrides], {})


def own(folder: Path, name: str, *overrides: str) -> Recipe:
    values = {
        "task": "image-classification",
        "model": f"{__name__}:{name}",
        "data": {"path": str(save_pictures(folder / "pictures", 4)), "size": 32},
        "output": str(folder / "run"),
    }
    return load_recipe(values, [*PROBE, *overrides], {})


def begun(asked: Recipe) -> tuple[Setup, str]:
    setup = build(asked)
    return setup, setup.task.begin(setup.adapter, first_epoch(setup))


@torch.no_grad()
def mean_loss(setup: Setup) -> float:
    return sum(setup.task.loss(setup.model, batch).item() for batch in first_epoch(setup))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_no_linear_layer_is_better(kind: str, biased: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 6) * torch.tensor([1.0, 30.0, 0.01, 1.0, 1.0, 0.0]) + 2.0
    target = {
        "single": torch.randint(3, (40,)),
        "multi": torch.randint(2, (40, 3)).float(),
        "regression": torch.randn(40),
    }[kind]
    outputs = 1 if kind == "regression" else 3
    seen, loss_of = Seen(features, target, torch.rand(40)), partial(losses, kind=kind, smoothing=0.1)

    def objective(weight: Tensor, bias: Tensor) -> float:
        wide = features.double() @ weight.double().T + bias.double()
        penalty = (weight.double() * features.double().std(0, correction=0)).square().sum() / (2 * C)
        return float((loss_of(wide, target) * seen.weight).sum() + penalty)

    weight, bias = fit(seen, loss_of, outputs, biased)
    best = objective(weight, bias)
    assert biased or not bias.any()
    assert best < objective(torch.zeros_like(weight), torch.zeros_like(bias))
    scale = features.std(0, correction=0).clamp_min(1e-6)
    for _ in range(50):
        aside = 0.02 * torch.randn_like(weight) / scale, 0.02 * torch.randn_like(bias) * biased
        if biased:  # turned about the middle of the features, where a step is small
            aside = aside[0], aside[1] - aside[0] @ features.mean(0)
        assert best < objective(weight + aside[0], bias + aside[1])


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_head_begins_better_and_the_base_as_it_was(setting: str, tmp_path: Path) -> None:
    asked = recipe(setting, tmp_path)
    random = build(asked)
    before, base = mean_loss(random), fingerprint(random.model)
    setup, done = begun(asked)
    assert "linear probe of" in done
    assert mean_loss(setup) < before
    assert fingerprint(setup.model) == base
    heads = set(setup.task.full(setup.model))
    for name, value in setup.adapter.named_parameters():
        if not any(name.startswith(f"{head}.") for head in heads):
            assert torch.equal(value, random.named[name]), f"{name} is not the head's"


@pytest.mark.parametrize("more", ["train.ema=0.9", "train.optimizer=schedule-free", "train.ema=null"])
def test_runs_begin_there_whatever_is_shown(more: str, tmp_path: Path) -> None:
    asked = recipe("texts", tmp_path, "train.steps=3", "train.evaluate_every=3", more)
    setup, _ = begun(asked)
    expected = setup.task.evaluate(setup.model.eval())
    train(asked)
    journal = (RunFolder(tmp_path / "run").path / "events.jsonl").read_text().splitlines()
    first = next(line for line in journal if '"evaluation"' in line)
    assert f'"validation_loss": {expected["validation_loss"]}' in first


def test_a_head_that_knows_the_labels_is_left_alone(tmp_path: Path) -> None:
    from tests.tiny_images import save_tiny_vit

    names = {0: "blue", 1: "red"}
    values = {
        "task": "image-classification",
        "model": str(save_tiny_vit(tmp_path / "vit", num_labels=2, id2label=names)),
        "data": {"path": str(save_pictures(tmp_path / "pictures", 4))},
        "output": str(tmp_path / "run"),
    }
    setup, done = begun(load_recipe(values, PROBE, {}))
    assert done == KNOWN
    assert torch.equal(setup.adapter.layers["classifier"].value, setup.model.classifier.weight)  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(("name", "reason"), [("doubled", "by itself"), ("convolved", "0 linear layers")])
def test_what_is_no_linear_head_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"head_start.*{reason}"):
        train(own(tmp_path, name))
