"""The objective of a diffusion model: pure functions of tensors.

With ᾱ_t the noise schedule, clean latents x0 and Gaussian noise ε (Ho et al. 2020, arXiv 2006.11239):

    x_t = √ᾱ_t · x0 + √(1 - ᾱ_t) · ε
    ε-prediction:  target = ε
    v-prediction:  target = √ᾱ_t · ε - √(1 - ᾱ_t) · x0          (Salimans & Ho 2022, arXiv 2202.00512)
    SNR_t = ᾱ_t / (1 - ᾱ_t)

Shapes: latents and noise (batch, channels, height, width), timesteps (batch,), ᾱ (timesteps,).
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """x_t, the latents with the noise of their timesteps mixed in."""
    signal, spread = _signal_and_spread(alphas_cumprod, timesteps)
    return signal * latents + spread * noise


def target(
    latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor, prediction_type: str
) -> Tensor:
    """What the network should predict; `prediction_type` is "epsilon" or "v_prediction"."""
    if prediction_type == "epsilon":
        return noise
    signal, spread = _signal_and_spread(alphas_cumprod, timesteps)
    return signal * noise - spread * latents


def min_snr_weights(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Loss weights (batch,) after Hang et al. 2023, arXiv 2303.09556, equation 12 and appendix.

        ε-prediction:  min(SNR, γ) / SNR          v-prediction:  min(SNR, γ) / (SNR + 1)

    Written in ᾱ rather than in the SNR, so that ᾱ = 0 (zero terminal SNR: weight 1 and 0) and ᾱ = 1
    need no division by zero:

        min(SNR, γ) / SNR       = min(1, γ (1 - ᾱ) / ᾱ)
        min(SNR, γ) / (SNR + 1) = min(ᾱ, γ (1 - ᾱ))
    """
    alpha = alphas_cumprod[timesteps]
    if prediction_type == "epsilon":
        return torch.where(gamma * (1 - alpha) >= alpha, 1.0, gamma * (1 - alpha) / alpha.clamp(min=1e-30))
    return torch.minimum(alpha, gamma * (1 - alpha))


def weighted_loss(prediction: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error in float32, a scalar; `weights` (batch,) count whole examples."""
    errors = (prediction.float() - wanted.float()).square().flatten(1).mean(1)
    return (errors if weights is None else errors * weights).mean()


def _signal_and_spread(alphas_cumprod: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ_t and √(1 - ᾱ_t), each (batch, 1, 1, 1)."""
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt(), (1 - alpha).sqrt()
