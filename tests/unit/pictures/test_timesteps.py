"""Noise levels follow their densities: against the standard library, diffusers' samplers, and integrals."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from lorimer.families._base import TimeSampling
from lorimer.tasks._timesteps import automatic_shift, shifted, spread_positions, times_at
from tests.tolerances import SAMPLED_DENSITY

GRID = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
EVERY_DENSITY = ("uniform", "logit-normal", "sigmoid", "mode", "cosmap")


@pytest.mark.parametrize("density", EVERY_DENSITY)
def test_quantiles_rise_from_the_picture_to_the_noise(density: str) -> None:
    times = times_at(GRID, TimeSampling(density=density))
    assert (times.diff() > 0).all()
    ends = times_at(torch.tensor([0.0, 1 - 2**-24]), TimeSampling(density=density))
    assert 0 <= ends[0] < 0.01 < 0.99 < ends[1] <= 1


@pytest.mark.parametrize(("density", "theirs"), [("logit-normal", "logit_normal"), ("mode", "mode")])
def test_densities_are_those_that_diffusers_draws_from(density: str, theirs: str) -> None:
    sampling = TimeSampling(density=density, mean=0.5, std=1.3, scale=0.8)
    drawn = compute_density_for_timestep_sampling(
        theirs, 10_000, logit_mean=0.5, logit_std=1.3, mode_scale=0.8,
        generator=torch.Generator().manual_seed(0),
    ).double()  # fmt: skip
    share_below = (drawn[:, None] < times_at(GRID, sampling)).double().mean(0)
    assert (share_below - GRID).abs().max() < SAMPLED_DENSITY


def test_logit_normal_times_are_quantiles_of_the_normal_distribution() -> None:
    times = times_at(GRID, TimeSampling(density="logit-normal", mean=-0.4, std=0.7))
    expected = [NormalDist(-0.4, 0.7).inv_cdf(position) for position in GRID.tolist()]
    torch.testing.assert_close(times.logit(), torch.tensor(expected, dtype=torch.float64))


def test_cosmap_draws_with_the_density_that_diffusers_weighs_with() -> None:
    positions = GRID.clone().requires_grad_()
    times = times_at(positions, TimeSampling(density="cosmap"))
    (slope,) = torch.autograd.grad(times.sum(), positions)
    density = compute_loss_weighting_for_sd3("cosmap", times.detach())
    torch.testing.assert_close(slope * density, torch.ones_like(density))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_the_automatic_shift_is_the_one_that_the_models_sampler_takes(kind: str, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, max_image_seq_len=8192, max_shift=0.9
    )
    expected = scheduler.time_shift(calculate_shift(tokens, 256, 8192, 0.5, 0.9), 1.0, GRID)
    torch.testing.assert_close(shifted(GRID, automatic_shift(scheduler.config, tokens)), expected)


def test_a_fixed_shift_holds_for_a_megapixel_and_grows_with_the_side() -> None:
    assert automatic_shift({"shift": 3.0}, 4096) == 3.0
    assert automatic_shift({"shift": 3.0}, 1024) == 1.5


def test_a_shift_draws_more_noise_and_its_inverse_undoes_it() -> None:
    assert (shifted(GRID, 3.0) > GRID).all()
    torch.testing.assert_close(shifted(shifted(GRID, 3.0), 1 / 3), GRID)


@pytest.mark.parametrize("density", EVERY_DENSITY)
def test_a_range_leaves_out_what_is_outside_and_keeps_the_shape_inside(density: str) -> None:
    fine = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    every = times_at(fine, TimeSampling(density=density), shift=2.0)
    inside = every[(every >= 0.25) & (every <= 0.7)]
    cut = times_at(GRID, TimeSampling(density=density, range=(0.25, 0.7)), shift=2.0)
    assert cut.min() >= 0.25
    assert cut.max() <= 0.7
    torch.testing.assert_close(cut, torch.quantile(inside, GRID), rtol=0, atol=1e-4)


def test_a_batch_is_spread_evenly() -> None:
    for count in (1, 3, 8):
        cells = (spread_positions(count) * count).long()
        assert sorted(cells.tolist()) == list(range(count))
