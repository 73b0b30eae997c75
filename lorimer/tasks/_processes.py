"""The noise process of a loaded model: what its family and its scheduler say, and what a recipe changes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorimer.errors import RecipeError
from lorimer.tasks._diffusion import DiffusionModel, alphas_cumprod
from lorimer.tasks._noise import Discrete, NoiseProcess, diffusion_process, flow_process
from lorimer.tasks._objective_section import DiffusionObjective
from lorimer.tasks._timesteps import automatic_shift

if TYPE_CHECKING:
    from lorimer.train.recipe import Recipe


def follow(model: DiffusionModel, objective: DiffusionObjective, clip_skip: int | None = None) -> None:
    """Have the model predict, be sampled and read captions as a recipe says, where that is not as its files
    say.

    Raises:
        RecipeError: the recipe asks for what such a model cannot do.
    """
    if clip_skip is not None and not model.family.clip_skip:
        raise RecipeError(
            f"data.clip_skip: models of the family {model.family.name} read all of CLIP's layers"
        )
    model.clip_skip = clip_skip
    process = noise_process(model, objective)
    changes: dict[str, Any] = {}
    if objective.prediction is not None and isinstance(process, Discrete):
        changes["prediction_type"] = process.prediction
    if objective.zero_terminal_snr:  # sampling must begin at the last timestep then
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if changes:
        model.scheduler = _changed(model.scheduler, changes)


def follow_recipe(model: DiffusionModel, recipe: Recipe) -> None:
    """`follow`, for a recipe of any picture task."""
    objective = recipe.objective
    own = objective if isinstance(objective, DiffusionObjective) else DiffusionObjective()
    follow(model, own, getattr(recipe.data, "clip_skip", None))


def _changed(scheduler: Any, changes: Mapping[str, Any]) -> Any:
    """The sampler with other settings; DDIM where its class does not have them."""
    from diffusers import DDIMScheduler

    known = inspect.signature(type(scheduler).__init__).parameters
    cls = type(scheduler) if set(changes) <= set(known) else DDIMScheduler
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    known = inspect.signature(cls.__init__).parameters
    return cls(**{name: value for name, value in {**config, **changes}.items() if name in known})


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
