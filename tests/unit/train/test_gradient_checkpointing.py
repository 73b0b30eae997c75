"""Gradient checkpointing: the same gradients for less memory, also before frozen layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from lorimer.errors import RecipeError
from lorimer.train.engine import train
from lorimer.train.recipe import Recipe
from lorimer.train.setup import build
from lorimer.train.step import micro_loss
from tests.tolerances import SAME_OUTPUT, relative_difference
from tests.unit.train.small import recipe

THIS = __name__


def transformer() -> nn.Module:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


class TwoParts(nn.Module):
    """Components of which only one has checkpointing, in diffusers' way."""

    components = ("body", "head")

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.checkpointed = nn.Linear(6, 5), False

        def enable_gradient_checkpointing(self) -> None:
            self.checkpointed = True

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    class Head(nn.Module):
        """Has the older of the two other names, and cannot."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 1)

        def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
            raise ValueError("not supported")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = self.Body(), self.Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def sentences() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(0, 20, (6,), generator=generator), "labels": torch.tensor(number % 2)}
        for number in range(8)
    ]


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def transformer_recipe(folder: Path, *overrides: str) -> Recipe:
    return recipe(
        folder, *overrides, model=f"{THIS}:transformer", data={"dataset": f"{THIS}:sentences"},
        objective={"loss": f"{THIS}:own_loss"}, adapter={"rank": 2, "targets": "attention"},
    )  # fmt: skip


@pytest.mark.parametrize("base_dropout", [True, False])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_same_tensors_get_the_same_gradients(tmp_path: Path, precision: str, base_dropout: bool) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        overrides = (
            f"train.gradient_checkpointing={checkpointing}",
            f"train.mixed_precision={precision}",
            f"train.base_dropout={base_dropout}",
        )
        setup = build(transformer_recipe(tmp_path, *overrides))
        setup.set_training()
        for parameter in setup.parameters:
            torch.manual_seed(parameter.numel())
            parameter.data.normal_(std=0.3)  # off the start, where half of all gradients are zero
        batch = setup.task.collate([setup.data[0], setup.data[1]])
        layer = setup.model.get_submodule("bert.encoder.layer.0.attention")
        passes = []
        layer.register_forward_pre_hook(lambda *_: passes.append(1))
        micro_loss(setup, batch).backward()
        assert len(passes) == (2 if checkpointing else 1)  # a second time in the backward pass
        return {name: p.grad for name, p in setup.adapter.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and len(plain) == 16
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0 and torch.isfinite(gradient).all(), name
        assert relative_difference(gradient, checkpointed[name]) <= SAME_OUTPUT[torch.float32], name


def test_every_tensor_learns_before_frozen_inputs(tmp_path: Path) -> None:
    """Where the reentrant kind would leave B at zero, the run's own check would end it."""
    train(transformer_recipe(tmp_path / "run", "train.gradient_checkpointing=true"))


def test_it_is_turned_on_in_every_component_that_has_it(tmp_path: Path) -> None:
    setup = build(recipe(tmp_path, "train.gradient_checkpointing=true", model=f"{THIS}:TwoParts"))
    assert setup.model.body.checkpointed  # type: ignore[union-attr]


def test_a_model_without_it_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.gradient_checkpointing: Sequential has no such thing"):
        build(recipe(tmp_path, "train.gradient_checkpointing=true"))
