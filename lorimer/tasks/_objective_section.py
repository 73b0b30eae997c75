"""What a recipe for a picture model may hold under `objective:`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from lorimer.errors import RecipeError
from lorimer.families._base import TimeSampling
from lorimer.tasks._base import Section

_STEEPEST_MODE = 1.75  # below 2 / (π - 2), where the density would turn back
_WEIGHTS = ("min_snr_gamma", "soft_min_snr_gamma", "debiased", "p2_gamma", "weighting")
_OF_DENSITIES = {
    "timestep_mean": ("logit-normal", "sigmoid"),
    "timestep_std": ("logit-normal", "sigmoid"),
    "timestep_scale": ("mode",),
}


def _ours(words: Mapping[str, str | None]) -> BeforeValidator:
    """Takes other tools' words for a value; otherwise `_` for `-` is forgiven."""
    return BeforeValidator(
        lambda value: words.get(value, value.replace("_", "-")) if isinstance(value, str) else value
    )


def _number_or_auto(value: Any) -> Any:
    if value not in (None, "auto") and not (type(value) in (int, float) and value > 0):
        raise ValueError("should be a number above 0, or auto")
    return value


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Loss = Annotated[Literal["mse", "huber", "l1"], _ours({"l2": "mse"})]
Prediction = Literal["epsilon", "v_prediction", "sample"]
Density = Literal["uniform", "logit-normal", "mode", "cosmap", "sigmoid"]
Weighting = Annotated[Literal["sigma-sqrt", "cosmap"] | None, _ours({"none": None, "uniform": None})]


class DiffusionObjective(Section):
    """The loss. What the model predicts (noise, velocity or flow) stands in its scheduler's config."""

    aliases: ClassVar[Mapping[str, str]] = {
        "caption_dropout_rate": "caption_dropout",
        "snr_gamma": "min_snr_gamma",
        "debiased_estimation_loss": "debiased",
        "weighting_scheme": "weighting",
        "noise_offset_strength": "noise_offset",
        "multires_noise_discount": "pyramid_noise",
        "ip_noise_gamma": "input_perturbation",
        "rescale_betas_zero_snr": "zero_terminal_snr",
        "loss_type": "loss",
        "huber_c": "huber_delta",
        "prior_loss_weight": "prior_weight",
        "timestep_sampling": "timesteps",
        "logit_mean": "timestep_mean",
        "logit_std": "timestep_std",
        "sigmoid_scale": "timestep_std",
        "mode_scale": "timestep_scale",
        "discrete_flow_shift": "timestep_shift",
        "training_shift": "timestep_shift",
        "prediction_type": "prediction",
    }

    caption_dropout: Fraction = 0.1
    """Share of examples that are shown without their caption, which guidance needs."""
    min_snr_gamma: PositiveFloat | None = None
    """Caps the weight of nearly clean timesteps (arXiv 2303.09556); 5 is usual, null weighs all alike."""
    soft_min_snr_gamma: PositiveFloat | None = None
    """The same without a corner (arXiv 2401.11605); instead of `min_snr_gamma`."""
    debiased: bool = False
    """Weighs noise levels by 1/√SNR on predicted noise (arXiv 2310.08442), and to the same effect on velocity
    and flow."""
    p2_gamma: NonNegativeFloat | None = None
    """Weighs noise levels by 1/(k + SNR)^gamma on predicted noise (arXiv 2204.00227), and to the same effect
    on velocity and flow; 1 is usual. 0 weighs a velocity like the noise that it says."""
    p2_k: PositiveFloat = 1.0
    """The k of `p2_gamma`."""
    weighting: Weighting = None
    """Weights of a flow model's noise levels: `sigma-sqrt` (1/σ²) or `cosmap`, of arXiv 2403.03206."""
    noise_offset: NonNegativeFloat = 0.0
    """Adds to the noise one random number per channel, of this size, so that very dark and very bright
    pictures can be learned; 0.05 to 0.1 is usual."""
    pyramid_noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Adds coarser noise at this discount per level, for the same end; 0.1 to 0.4 is usual, 0 is none."""
    input_perturbation: NonNegativeFloat = 0.0
    """Mixes in this much more noise than the model is asked for (arXiv 2301.11706); 0.1 is usual."""
    zero_terminal_snr: bool = False
    """Changes the noise schedule so that it ends in nothing but noise (arXiv 2305.08891); not for models that
    predict the noise."""
    loss: Loss = "mse"
    """Squared error, absolute error, or pseudo-Huber (arXiv 2403.16728), which minds outliers less."""
    huber_delta: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Errors larger than this count in proportion instead of squared, with `loss: huber`."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """Whether `huber_delta` always holds, or is reached from 1 as the noise grows."""
    prior_weight: NonNegativeFloat = 1.0
    """How much regularisation pictures count."""
    timesteps: Density | None = None
    """How noise levels are drawn; null: uniformly, or as a flow model was trained."""
    timestep_mean: float | None = None
    """Mean of the normal distribution behind `logit-normal` and `sigmoid`; more than 0 prefers noise."""
    timestep_std: PositiveFloat | None = None
    """Its standard deviation."""
    timestep_scale: Annotated[float, Field(ge=-1.0, le=_STEEPEST_MODE)] | None = None
    """Of `mode`: more than 0 prefers the middle."""
    timestep_shift: Annotated[float | Literal["auto"] | None, BeforeValidator(_number_or_auto)] = None
    """More than 1 draws more noise, for a flow model; `auto` follows the picture's size, null is as the model
    was trained."""
    timestep_range: tuple[Fraction, Fraction] = (0.0, 1.0)
    """The smallest and largest share of the noise levels to train on."""
    prediction: Prediction | None = None
    """What the model predicts; null believes its scheduler's config."""

    @model_validator(mode="before")
    @classmethod
    def _words_of_others(cls, values: Any) -> Any:
        """kohya's and diffusers' words that say two things at once, or belong to another field."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        density = values.get("timesteps")
        if values.get("weighting") in ("logit_normal", "logit-normal", "mode"):
            weighting = values.pop("weighting")
            density = weighting if density in (None, "sigma") else density
        if density == "flux_shift":
            values = {"timestep_shift": "auto", **values, "timesteps": "sigmoid"}
        elif isinstance(density, str):
            words = {"shift": "sigmoid", "sigma": "uniform"}
            values["timesteps"] = words.get(density, density.replace("_", "-"))
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> DiffusionObjective:
        chosen = [
            name for name in _WEIGHTS if not (getattr(self, name) is None or getattr(self, name) is False)
        ]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} each weigh the noise levels; choose one")
        if self.loss != "huber" and (self.huber_delta, self.huber_schedule) != (0.1, "snr"):
            raise ValueError("huber_delta and huber_schedule are for loss: huber; set it or leave them out")
        if self.p2_k != 1.0 and self.p2_gamma is None:
            raise ValueError("p2_k is for p2_gamma; set that, or leave it out")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError("zero_terminal_snr cannot go with prediction: epsilon; leave one of them out")
        if self.timestep_range[0] >= self.timestep_range[1]:
            raise ValueError("timestep_range is [smallest, largest], the first below the second")
        if self.timesteps is not None and (message := self._misplaced(self.timesteps)):
            raise ValueError(message)
        return self

    def sampling(self, default: TimeSampling) -> TimeSampling:
        """How times are drawn: what the recipe says, and `default` where it says nothing.

        Raises:
            RecipeError: the recipe gives a number that the default's density does not have.
        """
        if message := self._misplaced(self.timesteps or default.density):
            raise RecipeError(f"objective: {message}")
        given = {
            "density": self.timesteps,
            "mean": self.timestep_mean,
            "std": self.timestep_std,
            "scale": self.timestep_scale,
            "shift": self.timestep_shift,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(default, range=self.timestep_range, **changes)

    def _misplaced(self, density: str) -> str:
        """What is wrong with the numbers given for this density, or nothing."""
        for name, densities in _OF_DENSITIES.items():
            if getattr(self, name) is not None and density not in densities:
                return f"{name} is for timesteps: {densities[0]}, not {density}; set that, or leave it out"
        return ""
