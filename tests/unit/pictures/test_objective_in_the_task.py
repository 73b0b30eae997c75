"""Every field of the objective reaches the loss of a training step, and leaves validation alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lorimer.errors import RecipeError
from lorimer.tasks.text_to_image import TextToImage

FIELDS = [
    "min_snr_gamma=1",
    "soft_min_snr_gamma=1",
    "debiased=true",
    "p2_gamma=1",
    "noise_offset=0.1",
    "pyramid_noise=0.3",
    "input_perturbation=0.1",
    "loss=l1",
    "loss=huber",
    "timesteps=logit-normal",
    "timestep_range=[0.1, 0.4]",
    "prediction=v_prediction",
]


def _losses(task: TextToImage) -> tuple[torch.Tensor, dict[str, float]]:
    """Of one seeded training step, and of validation."""
    model = task.model()
    dataset = task.data(model)
    torch.manual_seed(0)
    with torch.no_grad():
        loss = task.loss(model, task.collate([dataset[index] for index in range(len(dataset))]))
    return loss, task.evaluate(model)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_changes_the_loss_of_a_step(make_task: Callable[..., TextToImage], field: str) -> None:
    held_out = "data.validation.fraction=0.34"
    plain, validation = _losses(make_task(held_out))
    loss, again = _losses(make_task(held_out, f"objective.{field}"))
    assert torch.isfinite(loss)
    assert loss != plain
    assert (again == validation) == (field != "prediction=v_prediction")  # which changes what is right


def test_zero_terminal_snr_changes_the_schedule(make_task: Callable[..., TextToImage]) -> None:
    velocity = "objective.prediction=v_prediction"
    plain, _ = _losses(make_task(velocity))
    changed, _ = _losses(make_task(velocity, "objective.zero_terminal_snr=true"))
    assert torch.isfinite(changed)
    assert changed != plain
    with pytest.raises(RecipeError, match=r"objective\.zero_terminal_snr: this model predicts the noise"):
        make_task("objective.zero_terminal_snr=true").model()
