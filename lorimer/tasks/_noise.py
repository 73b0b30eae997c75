"""The two ways from clean latents x0 and Gaussian noise ε to what a denoiser sees and should say.

    x_t = a_t x0 + b_t ε            SNR_t = a_t² / b_t²

    Discrete: a = √ᾱ_t, b = √(1 - ᾱ_t), t an integer (Ho et al. 2020, arXiv 2006.11239)
    Flow:     a = 1 - σ, b = σ, σ in (0, 1] (Liu et al. 2022, arXiv 2209.03003)

A process draws times, mixes noise in, says the target, and reads clean latents off a prediction. How the
network wants to be told σ (as it is, 1 - σ, times 1000) is its family's business.

Shapes: latents and noise (batch, channels, height, width), times (batch,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorimer.errors import RecipeError
from lorimer.families._base import TimeSampling
from lorimer.tasks._timesteps import spread_positions, times_at

if TYPE_CHECKING:
    from lorimer.tasks._objective_section import DiffusionObjective

PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SMALLEST_SIGMA = 1e-3  # the first of the thousand steps that samplers know
_SNR_ENDS = (1e-12, 1e12)  # for zero and infinity, so that no weight divides by zero


class NoiseProcess(ABC):
    """How noise is mixed into latents, and what is to be predicted from the mixture."""

    @abstractmethod
    def sample_times(self, count: int, size: Sequence[int]) -> Tensor:
        """`count` times spread evenly over the density, on the CPU, from one draw of the global generator.

        Args:
            size: height and width of the latents, which the density may depend on.
        """

    @abstractmethod
    def at(self, fractions: Tensor) -> Tensor:
        """The times that lie at these fractions of the way to the noise, whatever training draws."""

    @abstractmethod
    def fraction(self, times: Tensor) -> Tensor:
        """How far on the way to the noise these times lie, in [0, 1]."""

    @abstractmethod
    def signal_and_spread(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and b_t, each (batch,)."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should predict."""

    @abstractmethod
    def denoised(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """The clean latents that a prediction for `noisy` amounts to."""

    @abstractmethod
    def clean_error(self, times: Tensor) -> Tensor:
        """Squared error of `denoised` per squared error of the prediction, (batch,): what turns a weight on
        the one into a weight on the other."""

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t, the latents with the noise of their times mixed in."""
        signal, spread = self.along(latents, times)
        return signal * latents + spread * noise

    def snr(self, times: Tensor) -> Tensor:
        """SNR_t (batch,), with its zero and its infinity replaced by 1e-12 and 1e12."""
        signal, spread = self.signal_and_spread(times)
        return (signal / spread).square().clamp(*_SNR_ENDS)

    def along(self, latents: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and b_t in shapes that multiply `latents`."""
        shape = (-1, *[1] * (latents.dim() - 1))
        signal, spread = self.signal_and_spread(times)
        return signal.view(shape), spread.view(shape)


@dataclass(frozen=True, eq=False)
class Discrete(NoiseProcess):
    """The process of a model with a schedule of timesteps.

        epsilon:       target = ε
        v_prediction:  target = √ᾱ_t ε - √(1 - ᾱ_t) x0         (Salimans & Ho 2022, arXiv 2202.00512)
        sample:        target = x0

    Attributes:
        alphas_cumprod: ᾱ_t, (timesteps,), float32.
        prediction: what the network predicts.
        sampling: how timesteps are drawn.
    """

    alphas_cumprod: Tensor
    prediction: str = "epsilon"
    sampling: TimeSampling = field(default_factory=TimeSampling)

    def sample_times(self, count: int, size: Sequence[int]) -> Tensor:
        return self.at(times_at(spread_positions(count), self.sampling))

    def at(self, fractions: Tensor) -> Tensor:
        return (fractions * len(self.alphas_cumprod)).long().clamp(max=len(self.alphas_cumprod) - 1)

    def fraction(self, times: Tensor) -> Tensor:
        return times / len(self.alphas_cumprod)

    def signal_and_spread(self, times: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod.to(times.device)[times]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self.prediction != "v_prediction":
            return noise if self.prediction == "epsilon" else latents
        signal, spread = self.along(latents, times)
        return signal * noise - spread * latents

    def denoised(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        if self.prediction == "sample":
            return prediction
        signal, spread = self.along(noisy, times)
        if self.prediction == "epsilon":
            return (noisy - spread * prediction) / signal
        return signal * noisy - spread * prediction

    def clean_error(self, times: Tensor) -> Tensor:
        if self.prediction == "sample":
            return torch.ones_like(self.snr(times))
        return 1 / (self.snr(times) + (self.prediction == "v_prediction"))


@dataclass(frozen=True)
class Flow(NoiseProcess):
    """The process of a flow-matching model; target = ε - x0, times are σ.

    Attributes:
        sampling: how σ is drawn.
        automatic_shift: the shift for a picture of so many tokens, where `sampling.shift` is "auto".
        patch: how many latents along a side make one token.
    """

    sampling: TimeSampling = field(default_factory=TimeSampling)
    automatic_shift: Callable[[int], float] | None = None
    patch: int = 2

    def sample_times(self, count: int, size: Sequence[int]) -> Tensor:
        return self.at(times_at(spread_positions(count), self.sampling, self.shift(size)))

    def shift(self, size: Sequence[int]) -> float:
        """The shift for latents of this height and width."""
        if self.sampling.shift != "auto":
            return self.sampling.shift
        assert self.automatic_shift is not None, "checked by flow_process"
        height, width = size
        return self.automatic_shift((height // self.patch) * (width // self.patch))

    def at(self, fractions: Tensor) -> Tensor:
        return fractions.clamp(min=_SMALLEST_SIGMA)

    def fraction(self, times: Tensor) -> Tensor:
        return times

    def signal_and_spread(self, times: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - times, times

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise - latents

    def denoised(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        _, spread = self.along(noisy, times)
        return noisy - spread * prediction

    def clean_error(self, times: Tensor) -> Tensor:
        return times.square()


def diffusion_process(alphas_cumprod: Tensor, prediction: str, objective: DiffusionObjective) -> Discrete:
    """The process of a model with this schedule and prediction type, as the recipe's objective has it.

    Raises:
        RecipeError: the objective asks for what such a model cannot do.
    """
    prediction = objective.prediction or prediction
    if prediction not in PREDICTIONS:
        raise RecipeError(
            f"objective.prediction: the model's scheduler says {prediction!r}, which is none of "
            f"{', '.join(PREDICTIONS)}; set objective.prediction"
        )
    if objective.zero_terminal_snr:
        if prediction == "epsilon":
            raise RecipeError(
                "objective.zero_terminal_snr: this model predicts the noise, and where there is nothing but "
                "noise that says nothing of the picture; leave it out, or take a model that predicts velocity"
            )
        alphas_cumprod = zero_terminal_snr(alphas_cumprod)
    if objective.weighting is not None:
        raise RecipeError("objective.weighting: is for flow models; this one has min_snr_gamma and others")
    if objective.timestep_shift is not None:
        raise RecipeError("objective.timestep_shift: is for flow models; set objective.timesteps instead")
    return Discrete(alphas_cumprod, prediction, objective.sampling(TimeSampling()))


def flow_process(
    times: TimeSampling,
    objective: DiffusionObjective,
    automatic_shift: Callable[[int], float] | None = None,
    patch: int = 2,
) -> Flow:
    """The process of a flow model that was trained with `times`, as the recipe's objective has it.

    Raises:
        RecipeError: the objective asks for what such a model cannot do.
    """
    if objective.zero_terminal_snr:
        raise RecipeError("objective.zero_terminal_snr: a flow model ends in pure noise already")
    if objective.prediction is not None:
        raise RecipeError("objective.prediction: a flow model predicts the flow; leave this out")
    sampling = objective.sampling(times)
    if sampling.shift == "auto" and automatic_shift is None:
        raise RecipeError("objective.timestep_shift: no rule is known for this model; give a number")
    return Flow(sampling, automatic_shift, patch)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """ᾱ' with nothing but noise at the last timestep (Lin et al. 2023, arXiv 2305.08891, algorithm 1).

        √ᾱ'_t = (√ᾱ_t - √ᾱ_T) · √ᾱ_0 / (√ᾱ_0 - √ᾱ_T)

    which keeps the first entry, and changes nothing where the last is zero already.
    """
    signal = alphas_cumprod.double().sqrt()
    first, last = signal[0], signal[-1]
    return ((signal - last) * (first / (first - last))).square().to(alphas_cumprod.dtype)
