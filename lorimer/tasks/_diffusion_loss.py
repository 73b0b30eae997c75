"""The loss of a denoiser: pure functions of tensors, in float32.

Weights of noise levels are written as weights w(SNR) on the error of the clean latents, whatever the
network predicts; a process then says what such an error is in terms of the prediction's (`clean_error`):

    predicts ε: w / SNR        predicts v: w / (SNR + 1)        predicts the flow: w · σ²

so that one setting means the same denoiser for every kind of prediction.

Shapes: prediction and target (batch, channels, height, width), weights (batch,),
masks (batch, 1, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

if TYPE_CHECKING:
    from lorimer.tasks._noise import NoiseProcess
    from lorimer.tasks._objective_section import DiffusionObjective

Kind = Literal["mse", "l1", "huber"]


def objective_loss(
    prediction: Tensor,
    latents: Tensor,
    noise: Tensor,
    times: Tensor,
    process: NoiseProcess,
    objective: DiffusionObjective,
    *,
    mask: Tensor | None = None,
    example_weights: Tensor | None = None,
) -> Tensor:
    """The loss of one batch as the recipe's objective has it, a scalar.

    Args:
        mask: weights (batch, 1, height, width) of places, at the resolution of pixels or of latents.
        example_weights: (batch,), such as the weight of pictures that stand for the class.
    """
    weights = level_weights(process, times, objective)
    if example_weights is not None:
        weights = example_weights if weights is None else weights * example_weights
    threshold = None
    if objective.loss == "huber":
        threshold = huber_threshold(process, times, objective.huber_delta, objective.huber_schedule)
    wanted = process.target(latents, noise, times)
    if mask is not None:
        mask = pooled_mask(mask, wanted.shape[-2:])
    return weighted_loss(prediction, wanted, weights, kind=objective.loss, threshold=threshold, mask=mask)


def weighted_loss(
    prediction: Tensor,
    wanted: Tensor,
    weights: Tensor | None = None,
    *,
    kind: Kind = "mse",
    threshold: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean error in float32, a scalar; `weights` (batch,) count whole examples.

    With a `mask` (batch, 1, height, width) an example's error is the mean over its places weighted by
    them, Σ m e / Σ m. So every picture counts alike, however little of it the mask shows; a mask of ones
    changes nothing, and one of zeros takes its picture out.
    """
    errors = pointwise_error(prediction.float(), wanted.float(), kind, threshold)
    if mask is None:
        examples = errors.flatten(1).mean(1)
    else:
        mask = mask.to(errors)
        shown = mask.flatten(1).mean(1)
        examples = (errors * mask).flatten(1).mean(1) / torch.where(shown > 0, shown, 1.0)
    return (examples if weights is None else examples * weights).mean()


def pointwise_error(prediction: Tensor, wanted: Tensor, kind: Kind, threshold: Tensor | None) -> Tensor:
    """e² for "mse", |e| for "l1", and for "huber" with c the `threshold` (batch,)

        2c (√(e² + c²) - c) = 2c e² / (√(e² + c²) + c)

    the pseudo-Huber loss, e² where the error is small and 2c|e| where it is large; the right side does not
    cancel (Khrapov et al. 2024, arXiv 2403.16728; times two, so that it meets "mse").
    """
    errors = prediction - wanted
    if kind == "l1":
        return errors.abs()
    squares = errors.square()
    if kind == "mse":
        return squares
    assert threshold is not None
    c = threshold.to(errors).view(-1, *[1] * (errors.dim() - 1))
    return 2 * c * squares / ((squares + c.square()).sqrt() + c)


def huber_threshold(process: NoiseProcess, times: Tensor, delta: float, schedule: str) -> Tensor:
    """c_t (batch,) of the pseudo-Huber loss, 1 without noise and about `delta` at the end (arXiv 2403.16728).

    constant:     c = delta
    exponential:  c = delta^(t / T)
    snr:          c = (1 - delta) / (1 + 1/√SNR)² + delta = (1 - delta) (a / (a + b))² + delta
    """
    if schedule == "exponential":
        return torch.exp(math.log(delta) * process.fraction(times))
    signal, spread = process.signal_and_spread(times)
    if schedule == "constant":
        return torch.full_like(signal, delta)
    return (1 - delta) * (signal / (signal + spread)).square() + delta


def level_weights(process: NoiseProcess, times: Tensor, objective: DiffusionObjective) -> Tensor | None:
    """Weights (batch,) of the noise levels on the prediction's error; None where all count alike."""
    if objective.weighting is not None:
        sigma = process.fraction(times)
        return cosmap_weights(sigma) if objective.weighting == "cosmap" else sigma.pow(-2)
    snr = process.snr(times)
    if objective.min_snr_gamma is not None:
        clean = min_snr(snr, objective.min_snr_gamma)
    elif objective.soft_min_snr_gamma is not None:
        clean = soft_min_snr(snr, objective.soft_min_snr_gamma)
    elif objective.debiased:
        clean = debiased(snr)
    elif objective.p2_gamma is not None:
        clean = p2(snr, objective.p2_gamma, objective.p2_k)
    else:
        return None
    return clean * process.clean_error(times)


def min_snr(snr: Tensor, gamma: float) -> Tensor:
    """min(SNR, γ) (Hang et al. 2023, arXiv 2303.09556, equation 12)."""
    return snr.clamp(max=gamma)


def soft_min_snr(snr: Tensor, gamma: float) -> Tensor:
    """SNR γ / (SNR + γ), the same without the corner (Crowson et al. 2024, arXiv 2401.11605)."""
    return snr / (1 + snr / gamma)


def debiased(snr: Tensor) -> Tensor:
    """√SNR, which is 1/√SNR on predicted noise (Yu et al. 2023, arXiv 2310.08442)."""
    return snr.sqrt()


def p2(snr: Tensor, gamma: float, k: float) -> Tensor:
    """SNR / (k + SNR)^γ, which is 1 / (k + SNR)^γ on predicted noise (Choi et al. 2022, arXiv 2204.00227)."""
    return snr / (k + snr).pow(gamma)


def cosmap_weights(sigma: Tensor) -> Tensor:
    """2 / (π (1 - 2σ + 2σ²)) on the flow: the density "cosmap" as weights of uniform draws (Esser et al.
    2024, arXiv 2403.03206, section 3.1)."""
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))


def pooled_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (batch, 1, height, width) of pixels as means over the places of latents of this `size`."""
    return adaptive_avg_pool2d(mask.float(), (size[0], size[1]))
