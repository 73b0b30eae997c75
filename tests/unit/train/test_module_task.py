"""The task `module`: functions that a recipe names, and what is said when they are not right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from lorimer.errors import DataError, LorimerError, RecipeError
from lorimer.kernels.int8 import int8_linear
from lorimer.layers import int8_base
from lorimer.train.engine import check, train
from tests.unit.train.small import HERE, recipe
from tests.unit.train.test_engine import events

THIS = __name__


def classes(count: int = 20) -> Dataset[Any]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())


def dictionaries() -> list[dict[str, Any]]:
    return [{"x": torch.ones(6), "y": torch.ones(1)} for _ in range(4)]


def dictionary_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch["x"]) - batch["y"]).square().mean()


def classifier() -> nn.Module:
    return nn.Linear(6, 2)


def not_a_model() -> str:
    return "model"


def not_data() -> int:
    return 3


THING = 3


def test_cross_entropy_learns_classes(tmp_path: Path) -> None:
    train(
        recipe(
            tmp_path / "run",
            "train.steps=40",
            "train.learning_rate=0.1",
            model=f"{THIS}:Wrapped",
            data={"dataset": f"{THIS}:classes"},
            objective={"loss": "cross_entropy"},
        )
    )
    losses = [event["loss"] for event in events(tmp_path / "run", "step")]
    assert losses[-1] < 0.7 * losses[0]


class Wrapped(nn.Module):
    """A class can be named as well as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 128), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1))


def test_a_base_in_int8_learns_nearly_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(int8_base, "int8_linear", lambda *given: called.append(1) or int8_linear(*given))

    def losses(precision: str) -> list[float]:
        overrides = ("train.steps=20", f"train.base_precision={precision}", "train.log_every=1")
        train(recipe(tmp_path / precision, *overrides, model=f"{THIS}:wide"))
        return [event["loss"] for event in events(tmp_path / precision, "step")]

    exact = losses("exact")
    assert not called
    int8 = losses("int8")
    assert len(called) >= 20  # the one layer that is wide enough
    assert exact != int8 and exact == pytest.approx(int8, rel=0.1)
    assert exact[-1] < 0.5 * exact[0]


def test_examples_may_be_anything_that_the_loss_understands(tmp_path: Path) -> None:
    preflight = check(
        recipe(
            tmp_path, data={"dataset": f"{THIS}:dictionaries"}, objective={"loss": f"{THIS}:dictionary_loss"}
        )
    )
    assert preflight.examples == 4


def test_modules_in_the_current_directory_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_own_net.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(6, 1))\n"
    )
    assert check(recipe(tmp_path / "run", model="my_own_net:net")).adapter.trainable == 14
    del sys.modules["my_own_net"]


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"model": None}, RecipeError, "model: the task `module` needs a package.module:function"),
        ({"model": "just_a_name"}, RecipeError, "must be written as package.module:function"),
        ({"model": "no_such_package:net"}, RecipeError, "model: no_such_package cannot be imported"),
        ({"model": f"{HERE}:nett"}, RecipeError, "has no function 'nett'. Did you mean 'net'"),
        ({"model": f"{THIS}:THING"}, RecipeError, "has no function 'THING'"),
        ({"model": f"{THIS}:not_a_model"}, RecipeError, "returned a str, not an nn.Module"),
        ({"data": {"dataset": f"{THIS}:not_data"}}, DataError, "returned a int; a dataset needs len"),
        (
            {
                "data": {
                    "dataset": f"{HERE}:points",
                    "validation": f"{HERE}:points",
                    "validation_arguments": {"count": 0},
                }
            },
            DataError,
            "data.validation: .* returned no example",
        ),
        (
            {"data": {"dataset": f"{HERE}:points", "arguments": {"cnt": 5}}},
            RecipeError,
            "data.arguments: .*points does not take them: .*'cnt'",
        ),
        ({"objective": {"loss": "mze"}}, RecipeError, "no loss is called 'mze'. Did you mean 'mse'"),
        (
            {"objective": {"loss": "mse"}, "data": {"dataset": f"{THIS}:dictionaries"}},
            DataError,
            r"mse needs examples that are \(input, target\) pairs",
        ),
    ],
)
def test_what_a_recipe_names_wrongly_is_explained(
    tmp_path: Path, sections: dict[str, Any], error: type[LorimerError], message: str
) -> None:
    with pytest.raises(error, match=message):
        check(recipe(tmp_path / "run", **sections))
