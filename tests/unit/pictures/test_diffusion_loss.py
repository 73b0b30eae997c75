"""The objective against a slow reference, timestep by timestep, and against the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch

from lorimer.tasks._diffusion_loss import add_noise, min_snr_weights, target, weighted_loss

SCHEDULE = torch.linspace(0.999, 0.001, 100)


def test_noise_is_mixed_in_by_the_schedule() -> None:
    latents, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    timesteps = torch.tensor([0, 50, 99])
    noisy = add_noise(latents, noise, SCHEDULE, timesteps)
    for row, timestep in enumerate(timesteps.tolist()):
        alpha = SCHEDULE[timestep].item()
        expected = math.sqrt(alpha) * latents[row] + math.sqrt(1 - alpha) * noise[row]
        torch.testing.assert_close(noisy[row], expected)


def test_targets_agree_with_the_training_scheduler_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    timesteps = torch.tensor([3, 800])
    ours = target(latents, noise, scheduler.alphas_cumprod, timesteps, "v_prediction")
    torch.testing.assert_close(ours, scheduler.get_velocity(latents, noise, timesteps))
    assert target(latents, noise, scheduler.alphas_cumprod, timesteps, "epsilon") is noise
    noisy = add_noise(latents, noise, scheduler.alphas_cumprod, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0, 20.0])
def test_min_snr_weights_are_those_of_the_paper(gamma: float) -> None:
    timesteps = torch.arange(len(SCHEDULE))
    snr = (SCHEDULE.double() / (1 - SCHEDULE.double())).tolist()
    for kind, divisor in (("epsilon", 0.0), ("v_prediction", 1.0)):
        weights = min_snr_weights(SCHEDULE.double(), timesteps, gamma, kind)
        expected = torch.tensor([min(each, gamma) / (each + divisor) for each in snr], dtype=torch.float64)
        torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_weights_stay_finite_at_both_ends_of_the_schedule(kind: str) -> None:
    ends = torch.tensor([0.0, 1.0])
    weights = min_snr_weights(ends, torch.tensor([0, 1]), 5.0, kind)
    assert weights.tolist() == ([1.0, 0.0] if kind == "epsilon" else [0.0, 0.0])


def test_weights_count_whole_examples() -> None:
    prediction, wanted = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 1.0]]], [[[3.0, 3.0]]]])
    assert weighted_loss(prediction, wanted).item() == 5.0
    assert weighted_loss(prediction, wanted, torch.tensor([1.0, 0.0])).item() == 0.5


def test_the_loss_is_computed_in_float32() -> None:
    half = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)  # 300 squared overflows float16
    assert weighted_loss(half, torch.zeros_like(half)).item() == 90000.0
