"""The two noise processes against diffusers' schedulers and against what they promise of each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr

from lorimer.errors import RecipeError
from lorimer.families._base import TimeSampling
from lorimer.tasks._noise import (
    PREDICTIONS,
    Discrete,
    Flow,
    NoiseProcess,
    diffusion_process,
    flow_process,
    zero_terminal_snr,
)
from lorimer.tasks._noise_draws import draw_noise, perturbed, pyramid_noise
from lorimer.tasks._objective_section import DiffusionObjective
from lorimer.tasks._timesteps import automatic_shift

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod
EVERY_PROCESS = [*(Discrete(ALPHAS.double(), kind) for kind in PREDICTIONS), Flow()]


def _names(process: NoiseProcess) -> str:
    return process.prediction if isinstance(process, Discrete) else "flow"


def _latents(count: int = 3, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, count, 4, 8, 6, dtype=dtype, generator=generator))


def objective(**values: Any) -> DiffusionObjective:
    return DiffusionObjective.model_validate(values)


def test_the_discrete_process_is_that_of_diffusers_training_scheduler() -> None:
    (latents, noise), times = _latents(dtype=torch.float32), torch.tensor([3, 500, 999])
    process = Discrete(ALPHAS, "v_prediction")
    torch.testing.assert_close(
        process.add_noise(latents, noise, times), SCHEDULER.add_noise(latents, noise, times)
    )
    torch.testing.assert_close(
        process.target(latents, noise, times), SCHEDULER.get_velocity(latents, noise, times)
    )
    torch.testing.assert_close(process.snr(times), compute_snr(SCHEDULER, times))
    assert Discrete(ALPHAS).target(latents, noise, times) is noise


def test_the_flow_process_is_that_of_diffusers_flow_scheduler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    latents, noise = _latents(dtype=torch.float32)
    steps = torch.tensor([0, 400, 999])  # from noise to picture
    process, times = Flow(), scheduler.sigmas[steps]
    noisy = process.add_noise(latents, noise, times)
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, scheduler.timesteps[steps], noise))
    # The sampler integrates the target; one step to σ = 0 is the picture.
    torch.testing.assert_close(
        noisy - times.view(-1, 1, 1, 1) * process.target(latents, noise, times), latents
    )


@pytest.mark.parametrize("process", EVERY_PROCESS, ids=_names)
def test_the_target_denoises_to_the_clean_latents(process: NoiseProcess) -> None:
    latents, noise = _latents()
    times = process.at(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    noisy = process.add_noise(latents, noise, times)
    torch.testing.assert_close(process.denoised(process.target(latents, noise, times), noisy, times), latents)


@pytest.mark.parametrize("process", EVERY_PROCESS, ids=_names)
def test_an_error_of_the_prediction_comes_out_as_the_clean_error_says(process: NoiseProcess) -> None:
    latents, noise = _latents()
    times = process.at(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    noisy = process.add_noise(latents, noise, times)
    wrong = process.target(latents, noise, times) + 0.5
    errors = (process.denoised(wrong, noisy, times) - latents).square().flatten(1).mean(1)
    torch.testing.assert_close(errors, 0.25 * process.clean_error(times))


@pytest.mark.parametrize("process", EVERY_PROCESS, ids=_names)
def test_more_noise_further_on_the_way(process: NoiseProcess) -> None:
    fractions = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    times = process.at(fractions)
    torch.testing.assert_close(process.fraction(times), fractions)
    assert (process.snr(times).diff() < 0).all()


def test_timesteps_are_drawn_as_they_always_were() -> None:
    torch.manual_seed(5)
    times = Discrete(ALPHAS).sample_times(4, (8, 8))
    torch.manual_seed(5)
    assert times.tolist() == ((torch.rand(()) + torch.arange(4) / 4) % 1 * 1000).long().tolist()


def test_every_timestep_can_be_drawn_and_none_beyond() -> None:
    times = Discrete(ALPHAS[:10]).sample_times(1000, (8, 8))
    assert times.unique().tolist() == list(range(10))
    assert Discrete(ALPHAS).at(torch.tensor([1.0])).item() == 999


def test_a_flow_never_draws_a_picture_without_noise() -> None:
    sigmas = Flow(TimeSampling(density="logit-normal", mean=-20.0)).sample_times(100, (8, 8))
    assert sigmas.min() >= 1e-3
    assert torch.isfinite(sigmas).all()


def test_larger_pictures_get_more_noise_where_the_shift_follows_their_size() -> None:
    rule = partial(automatic_shift, {"use_dynamic_shifting": True})
    flow = flow_process(TimeSampling(shift="auto"), objective(), rule)
    assert flow.shift((32, 32)) == pytest.approx(torch.tensor(0.5).exp().item())
    assert flow.shift((128, 128)) == pytest.approx(torch.tensor(1.15).exp().item())
    torch.manual_seed(0)
    small = flow.sample_times(8, (32, 32))
    torch.manual_seed(0)
    assert (flow.sample_times(8, (128, 128)) > small).all()


def test_zero_terminal_snr_is_the_paper_s() -> None:
    ours = zero_terminal_snr(ALPHAS)
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(SCHEDULER.betas.double()), 0).float()
    torch.testing.assert_close(ours, theirs)
    assert ours[0] == ALPHAS[0]
    assert ours[-1] == 0
    assert torch.equal(zero_terminal_snr(ours), ours)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_signal_to_noise_is_finite_at_both_ends_of_a_schedule(kind: str) -> None:
    process = Discrete(torch.tensor([1.0, 0.5, 0.0]), kind)
    times = torch.arange(3)
    assert torch.isfinite(process.snr(times)).all()
    assert torch.isfinite(process.clean_error(times)).all()


def test_the_recipe_wins_over_the_model() -> None:
    process = diffusion_process(
        ALPHAS, "epsilon", objective(prediction="v_prediction", zero_terminal_snr=True)
    )
    assert process.prediction == "v_prediction"
    assert process.alphas_cumprod[-1] == 0
    given = objective(timesteps="logit-normal", timestep_mean=0.2, timestep_shift=2, timestep_range=[0.1, 1])
    flow = flow_process(TimeSampling(shift="auto", std=0.7), given)
    assert flow.sampling == TimeSampling("logit-normal", mean=0.2, std=0.7, shift=2.0, range=(0.1, 1.0))
    assert flow_process(flow.sampling, objective(timestep_range=[0.1, 1])).sampling == flow.sampling


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_terminal_snr": True}, "predicts the noise"),
        ({"weighting": "cosmap"}, "flow models"),
        ({"timestep_shift": 3}, "flow models"),
        ({"timestep_std": 2}, "timestep_std is for timesteps: logit-normal, not uniform"),
    ],
)
def test_what_a_noise_model_cannot_do_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        diffusion_process(ALPHAS, "epsilon", objective(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_terminal_snr": True}, "pure noise already"),
        ({"prediction": "epsilon"}, "predicts the flow"),
        ({"timestep_shift": "auto"}, "give a number"),
    ],
)
def test_what_a_flow_model_cannot_do_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        flow_process(TimeSampling(), objective(**values))


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(RecipeError, match="'flow_prediction', which is none of epsilon"):
        diffusion_process(ALPHAS, "flow_prediction", objective())


def test_plain_noise_is_drawn_as_it_always_was() -> None:
    torch.manual_seed(1)
    drawn = draw_noise((2, 4, 8, 8), offset=0.1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.randn(2, 4, 8, 8) + 0.1 * torch.randn(2, 4, 1, 1))


def test_an_offset_moves_whole_channels_alone() -> None:
    torch.manual_seed(1)
    shifts = draw_noise((2, 4, 8, 8), offset=3.0)
    torch.manual_seed(1)
    shifts -= draw_noise((2, 4, 8, 8))
    assert shifts.flatten(2).std(2).max() < 1e-5
    assert shifts[:, :, 0, 0].std() > 1


@pytest.mark.parametrize("shape", [(3, 4, 16, 16), (3, 4, 8, 24), (2, 4, 1, 16, 16)])
def test_pyramid_noise_is_coarser_and_of_unit_variance(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    white = torch.randn(shape)
    coarse = pyramid_noise(white, 0.8)
    torch.testing.assert_close(coarse.flatten(1).std(1), torch.ones(shape[0]))
    blocks = [
        torch.nn.functional.avg_pool2d(each.flatten(0, -4), 4).square().mean() for each in (white, coarse)
    ]
    assert blocks[1] > 2 * blocks[0]


def test_pyramid_noise_of_no_coarse_levels_is_white() -> None:
    white = torch.randn(2, 4, 16, 16)
    torch.testing.assert_close(pyramid_noise(white, 1e-9), white / white.flatten(1).std(1).view(-1, 1, 1, 1))


def test_an_example_has_the_same_pyramid_noise_whatever_stands_beside_it() -> None:
    loud = torch.randn(2, 4, 8, 8) * torch.tensor([1.0, 100.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(pyramid_noise(loud, 0.3).flatten(1).std(1), torch.ones(2))


def test_perturbation_adds_its_share_of_fresh_noise() -> None:
    noise = torch.randn(4, 4, 32, 32)
    added = perturbed(noise, 0.1) - noise
    assert added.std().item() == pytest.approx(0.1, rel=0.05)
    assert perturbed(noise, 0.0) is noise
