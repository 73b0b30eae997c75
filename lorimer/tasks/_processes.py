"""The noise process of a loaded model: what its family and its scheduler say, and what a recipe changes."""

from __future__ import annotations

from lorimer.tasks._diffusion import DiffusionModel, alphas_cumprod
from lorimer.tasks._noise import NoiseProcess, diffusion_process, flow_process
from lorimer.tasks._objective_section import DiffusionObjective
from lorimer.tasks._timesteps import automatic_shift


def noise_process(model: DiffusionModel, objective: DiffusionObjective) -> NoiseProcess:
    """How noise is mixed into this model's latents, as the recipe's objective has it.

    Raises:
        RecipeError: the objective asks for what such a model cannot do.
    """
    if model.family.process == "diffusion":
        return diffusion_process(alphas_cumprod(model.scheduler), model.prediction_type, objective)
    sampler = dict(model.scheduler.config)
    patch = max(1, model.pixel_unit // model.family.pixels_per_latent(model))
    return flow_process(model.family.times, objective, lambda tokens: automatic_shift(sampler, tokens), patch)
