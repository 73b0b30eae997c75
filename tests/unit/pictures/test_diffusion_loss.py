"""The loss against the papers' formulas, against kohya's, and across kinds of prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

from lorimer.tasks._diffusion_loss import (
    huber_threshold,
    level_weights,
    objective_loss,
    pointwise_error,
    pooled_mask,
    weighted_loss,
)
from lorimer.tasks._noise import PREDICTIONS, Discrete, Flow
from lorimer.tasks._objective_section import DiffusionObjective

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod
TIMES = torch.arange(1, 1000, 37)
SNR = compute_snr(SCHEDULER, TIMES)
EVERY_WEIGHTING: list[dict[str, Any]] = [
    {"min_snr_gamma": 5},
    {"soft_min_snr_gamma": 5},
    {"debiased": True},
    {"p2_gamma": 1},
    {"p2_gamma": 0.5, "p2_k": 2},
]


def objective(**values: Any) -> DiffusionObjective:
    return DiffusionObjective.model_validate(values)


def _on_noise(**values: Any) -> torch.Tensor | None:
    return level_weights(Discrete(ALPHAS, "epsilon"), TIMES, objective(**values))


def _on_velocity(**values: Any) -> torch.Tensor | None:
    return level_weights(Discrete(ALPHAS, "v_prediction"), TIMES, objective(**values))


# ---- weights of noise levels


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0, 20.0])
def test_min_snr_weights_are_those_of_the_paper(gamma: float) -> None:
    least = torch.minimum(SNR, torch.tensor(gamma))
    torch.testing.assert_close(_on_noise(min_snr_gamma=gamma), least / SNR)
    torch.testing.assert_close(_on_velocity(min_snr_gamma=gamma), least / (SNR + 1))


def test_weights_on_noise_are_those_of_their_papers() -> None:
    torch.testing.assert_close(_on_noise(debiased=True), SNR.rsqrt())
    torch.testing.assert_close(_on_noise(p2_gamma=0.5, p2_k=2), (2 + SNR).rsqrt())
    torch.testing.assert_close(_on_noise(soft_min_snr_gamma=5), 5 / (SNR + 5))
    assert _on_noise() is None


def test_a_velocity_can_be_weighed_like_noise() -> None:
    torch.testing.assert_close(_on_velocity(p2_gamma=0), SNR / (SNR + 1))


@pytest.mark.parametrize("weighting", EVERY_WEIGHTING, ids=str)
def test_one_denoiser_has_one_loss_whatever_it_predicts(weighting: dict[str, Any]) -> None:
    """Wrong by the same clean latents, at the same SNR, for all three predictions and as a flow."""
    wrong = torch.randn(len(TIMES), 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = 1 / (1 + SNR.double().sqrt())
    cases = [(Discrete(ALPHAS.double(), kind), TIMES) for kind in PREDICTIONS] + [(Flow(), sigma)]
    losses = []
    for process, times in cases:
        errors = wrong / process.clean_error(times).sqrt().view(-1, 1, 1, 1)
        weights = level_weights(process, times, objective(**weighting))
        losses.append(weighted_loss(errors, torch.zeros_like(errors), weights))
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("weighting", EVERY_WEIGHTING, ids=str)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_weights_stay_finite_at_both_ends_of_the_schedule(kind: str, weighting: dict[str, Any]) -> None:
    process = Discrete(torch.tensor([1.0, 0.0]), kind)
    weights = level_weights(process, torch.tensor([0, 1]), objective(**weighting))
    assert weights is not None
    assert torch.isfinite(weights).all()


def test_a_velocity_of_pure_noise_and_of_a_clean_picture_weighs_nothing() -> None:
    process = Discrete(torch.tensor([1.0, 0.0]), "v_prediction")
    weights = level_weights(process, torch.tensor([0, 1]), objective(min_snr_gamma=5))
    torch.testing.assert_close(weights, torch.zeros(2))


@pytest.mark.parametrize(("ours", "theirs"), [("cosmap", "cosmap"), ("sigma-sqrt", "sigma_sqrt")])
def test_weights_of_a_flow_are_those_of_diffusers(ours: str, theirs: str) -> None:
    sigma = torch.linspace(0.01, 1, 20)
    weights = level_weights(Flow(), sigma, objective(weighting=ours))
    torch.testing.assert_close(weights, compute_loss_weighting_for_sd3(theirs, sigma))


# ---- errors


def test_the_loss_is_computed_in_float32() -> None:
    half = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)  # 300 squared overflows float16
    assert weighted_loss(half, torch.zeros_like(half)).item() == 90000.0


def test_absolute_errors() -> None:
    prediction, wanted = torch.tensor([[[[1.0, -3.0]]]]), torch.zeros(1, 1, 1, 2)
    assert weighted_loss(prediction, wanted, kind="l1").item() == 2.0


def test_pseudo_huber_is_the_formula_that_kohya_uses() -> None:
    prediction, wanted = torch.randn(2, 3, 4, 5, 4, dtype=torch.float64)
    c = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    wide = c.view(-1, 1, 1, 1)
    expected = 2 * wide * (((prediction - wanted) ** 2 + wide**2).sqrt() - wide)
    torch.testing.assert_close(pointwise_error(prediction, wanted, "huber", c), expected)


def test_pseudo_huber_is_square_for_small_errors_and_straight_for_large_ones() -> None:
    c = torch.tensor([0.1])
    small, large = torch.full((1, 1, 1, 1), 1e-4), torch.full((1, 1, 1, 1), 1e4)
    zero = torch.zeros(1, 1, 1, 1)
    torch.testing.assert_close(pointwise_error(small, zero, "huber", c), small.square())
    torch.testing.assert_close(pointwise_error(large, zero, "huber", c), 2 * 0.1 * large, rtol=1e-4, atol=0)


def test_pseudo_huber_has_a_gradient_where_there_is_no_error() -> None:
    prediction = torch.zeros(1, 1, 1, 1, requires_grad=True)
    pointwise_error(prediction, torch.zeros(1, 1, 1, 1), "huber", torch.tensor([0.1])).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.item() == 0.0


def test_huber_thresholds_are_those_that_kohya_schedules() -> None:
    process, delta = Discrete(ALPHAS), 0.1
    spread = ((1 - ALPHAS[TIMES]) / ALPHAS[TIMES]).sqrt()
    expected = {
        "constant": torch.full((len(TIMES),), delta),
        "exponential": delta ** (TIMES / 1000),
        "snr": (1 - delta) / (1 + spread) ** 2 + delta,
    }
    for schedule, thresholds in expected.items():
        torch.testing.assert_close(huber_threshold(process, TIMES, delta, schedule), thresholds)


@pytest.mark.parametrize("schedule", ["exponential", "snr"])
def test_huber_thresholds_of_a_flow_fall_from_one_to_delta(schedule: str) -> None:
    thresholds = huber_threshold(Flow(), torch.linspace(0, 1, 9), 0.05, schedule)
    torch.testing.assert_close(thresholds[[0, -1]], torch.tensor([1.0, 0.05]))
    assert (thresholds.diff() < 0).all()


# ---- examples and places


def test_weights_count_whole_examples() -> None:
    prediction, wanted = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 1.0]]], [[[3.0, 3.0]]]])
    assert weighted_loss(prediction, wanted).item() == 5.0
    assert weighted_loss(prediction, wanted, torch.tensor([1.0, 0.0])).item() == 0.5


def test_a_mask_of_ones_changes_nothing() -> None:
    prediction, wanted = torch.randn(2, 3, 4, 8, 8)
    ones = torch.ones(3, 1, 8, 8)
    assert torch.equal(weighted_loss(prediction, wanted, mask=ones), weighted_loss(prediction, wanted))


def test_a_mask_is_a_weighted_mean_that_does_not_depend_on_how_much_it_shows() -> None:
    prediction, wanted = torch.randn(2, 1, 4, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :3, 2:5] = 1
    expected = (prediction - wanted)[..., :3, 2:5].square().mean()
    torch.testing.assert_close(weighted_loss(prediction, wanted, mask=mask), expected)
    torch.testing.assert_close(weighted_loss(prediction, wanted, mask=0.25 * mask), expected)


def test_what_a_mask_hides_gets_no_gradient() -> None:
    prediction = torch.randn(1, 4, 8, 8, requires_grad=True)
    mask = (torch.arange(8) < 4).float().expand(1, 1, 8, 8)
    weighted_loss(prediction, torch.randn(1, 4, 8, 8), mask=mask).backward()
    assert prediction.grad is not None
    assert (prediction.grad != 0).equal(mask.bool().expand(1, 4, 8, 8))


def test_an_empty_mask_takes_its_picture_out() -> None:
    prediction, wanted = torch.randn(2, 2, 4, 8, 8)
    mask = torch.ones(2, 1, 8, 8)
    mask[1] = 0
    loss = weighted_loss(prediction, wanted, mask=mask)
    torch.testing.assert_close(loss, weighted_loss(prediction[:1], wanted[:1]) / 2)


def test_masks_of_pixels_become_means_over_latents() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :4] = 1
    assert pooled_mask(mask, (2, 2)).tolist() == [[[[0.5, 0.0], [0.0, 0.0]]]]
    assert torch.equal(pooled_mask(mask, (16, 16)), mask)


# ---- the whole


def test_the_default_objective_is_the_mean_squared_error_to_the_bit() -> None:
    prediction, latents, noise = torch.randn(3, 4, 4, 8, 8)
    times = torch.tensor([1, 300, 600, 999])
    process = Discrete(ALPHAS, "v_prediction")
    loss = objective_loss(prediction, latents, noise, times, process, objective())
    signal, spread = (part.view(-1, 1, 1, 1) for part in (ALPHAS[times].sqrt(), (1 - ALPHAS[times]).sqrt()))
    expected = (prediction - (signal * noise - spread * latents)).square().flatten(1).mean(1).mean()
    assert torch.equal(loss, expected)


def test_the_objective_puts_weights_errors_and_masks_together() -> None:
    prediction, latents, noise = torch.randn(3, 2, 4, 8, 8)
    sigma, mask, priors = torch.tensor([0.2, 0.9]), torch.rand(2, 1, 64, 64), torch.tensor([1.0, 0.5])
    wanted = objective(loss="huber", huber_delta=0.3, huber_schedule="constant", min_snr_gamma=5)
    loss = objective_loss(
        prediction, latents, noise, sigma, Flow(), wanted, mask=mask, example_weights=priors
    )
    total = 0.0
    for row in range(2):
        errors = prediction[row] - (noise[row] - latents[row])
        errors = 0.6 * ((errors**2 + 0.09).sqrt() - 0.3)
        shown = mask[row].view(8, 8, 8, 8).mean((1, 3))
        level = min(((1 - sigma[row]) / sigma[row]) ** 2, torch.tensor(5.0)) * sigma[row] ** 2
        total += priors[row] * level * (errors * shown).sum() / (4 * shown.sum())
    torch.testing.assert_close(loss, total / 2)
