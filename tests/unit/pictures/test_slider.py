"""Sliders: the loss is equation 8 of arXiv 2311.12092, and strengths 1 and -1 go opposite ways."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorimer
from lorimer import LoRA
from lorimer.errors import RecipeError
from lorimer.families._base import Conditioning
from lorimer.tasks._diffusion import DiffusionModel, alphas_cumprod
from lorimer.tasks.concept_slider import ConceptSlider
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.tiny_families import save_tiny_family

PROMPTS = {"target": "a ball", "positive": "a red ball", "negative": "a blue ball"}


@pytest.fixture(scope="module")
def flow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family("sd3", tmp_path_factory.mktemp("models") / "flow")


def _values(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    return {
        "task": "concept-slider",
        "model": str(model),
        "data": {"directions": [PROMPTS]},
        "output": str(folder / "run"),
        **more,
    }


def _task(folder: Path, model: Path, **objective: Any) -> ConceptSlider:
    values = _values(folder, model, objective={"drawing_steps": 4, "guidance": 2.0, **objective})
    return ConceptSlider(load_recipe(values, environment={}))


def _ask(model: DiffusionModel, noisy: Tensor, time: float, text: Conditioning) -> Tensor:
    times = torch.tensor([time]) if model.family.process == "flow" else torch.tensor([int(time)])
    return model(noisy, times, text)


def _level(model: DiffusionModel, share: float) -> tuple[float, float, float]:
    """(what the network is told, signal, spread) at a share of the way to the noise."""
    if model.family.process == "flow":
        sigma = max(share, 1e-3)
        return sigma, 1 - sigma, sigma
    time = min(int(share * 1000), 999)
    alpha = alphas_cumprod(model.scheduler)[time].item()
    return time, math.sqrt(alpha), math.sqrt(1 - alpha)


def _clean_and_noise(model: DiffusionModel, said: Tensor, noisy: Tensor, a: float, b: float) -> Any:
    """(x0, ε) from what the network says of a x0 + b ε."""
    kind = model.prediction_type
    if kind == "flow":  # ε - x0
        return noisy - b * said, noisy + a * said
    if kind == "v_prediction":  # a ε - b x0
        return a * noisy - b * said, b * noisy + a * said
    return (noisy - b * said) / a, said


@pytest.mark.parametrize("kind", ["noise", "velocity", "flow"])
def test_the_loss_is_equation_8(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    task = _task(tmp_path, request.getfixturevalue(f"{kind}_model"))
    model = task.model()
    data = task.data(model)
    batch = task.collate([data[0]])
    lorimer.attach(model, LoRA(rank=2), targets="attention", exclude=["re:(vae|text_encoder).*"])
    adapter = lorimer.attached(model)["default"]
    torch.manual_seed(2)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    torch.manual_seed(3)
    loss = task.loss(model, batch)

    torch.manual_seed(3)
    noise = torch.randn(1, *data._latent_shape if hasattr(data, "_latent_shape") else task._latent_shape)
    stop = 1 + int(torch.randint(3, ()))  # of the shares 1, 3/4, 1/2, 1/4, 0 those within 0.1 and 0.9
    text = {role: model.encode_texts([prompt]) for role, prompt in PROMPTS.items()}
    empty = model.encode_texts([""])
    total = 0.0
    for sign in (1.0, -1.0):
        adapter.strength = sign
        with torch.no_grad():
            noisy = noise
            for place in range(stop):
                time, a, b = _level(model, 1 - place / 4)
                without = _ask(model, noisy, time, empty)
                said = without + 3.0 * (_ask(model, noisy, time, text["target"]) - without)
                clean, rest = _clean_and_noise(model, said, noisy, a, b)
                _, a, b = _level(model, 1 - (place + 1) / 4)
                noisy = a * clean + b * rest
            time, _, _ = _level(model, 1 - stop / 4)
            adapter.strength = 0.0
            plain, up, down = (_ask(model, noisy, time, text[role]) for role in PROMPTS)
            adapter.strength = sign
            said = _ask(model, noisy, time, text["target"])
        total += (said - plain - sign * 2.0 * (up - down)).square().mean().item() / 2
    assert loss.item() == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("kind", ["noise", "velocity", "flow"])
def test_after_training_strengths_1_and_minus_1_move_opposite_ways(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"{kind}_model")
    values = _values(
        tmp_path,
        folder,
        objective={"drawing_steps": 2, "timestep_range": [0.4, 0.6]},
        adapter={"rank": 4, "targets": "all-linear"},
        train={"steps": 25, "batch_size": 1, "learning_rate": 5e-3, "checkpoint_every": 0},
    )
    result = train(load_recipe(values, environment={}))
    task = ConceptSlider(load_recipe(values, environment={}))
    model = task.model()
    task.data(model)
    text = {role: model.encode_texts([prompt]) for role, prompt in PROMPTS.items()}
    noisy = torch.randn(4, *task._latent_shape, generator=torch.Generator().manual_seed(1))
    time, _, _ = _level(model, 0.5)

    def said(role: str) -> Tensor:
        with torch.no_grad():
            return torch.cat([_ask(model, each[None], time, text[role]) for each in noisy]).flatten()

    plain, direction = said("target"), said("positive") - said("negative")
    adapter = lorimer.load(model, result.adapter)
    moves = {}
    for strength in (1.0, -1.0):
        adapter.strength = strength
        moves[strength] = said("target") - plain
    assert torch.cosine_similarity(moves[1.0], direction, dim=0) > 0.5
    assert torch.cosine_similarity(moves[-1.0], direction, dim=0) < -0.5


def test_a_direction_that_is_none_is_refused(tmp_path: Path, noise_model: Path) -> None:
    same = {"target": "a", "positive": "b", "negative": "b"}
    with pytest.raises(RecipeError, match="there is no direction"):
        load_recipe(_values(tmp_path, noise_model, data={"directions": [same]}), environment={})
