"""The noise that a training step mixes into clean latents: white, with an offset, or of several sizes.

Everything is drawn on the CPU from torch's global generator, so that a run does not depend on its device.
Shapes: noise (batch, channels, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def draw_noise(shape: Sequence[int], offset: float = 0.0, pyramid: float = 0.0) -> Tensor:
    """Noise of `shape`, on the CPU: Gaussian, made coarser by `pyramid` and then shifted by `offset`.

    Args:
        offset: size of one more random number per channel, which white noise has next to none of: "Diffusion
            with Offset Noise", N. Guttenberg 2023, crosslabs.org.
        pyramid: discount of `pyramid_noise`; 0 leaves the noise white.
    """
    noise = torch.randn(*shape)
    if pyramid:
        noise = pyramid_noise(noise, pyramid)
    if offset:
        noise = noise + offset * torch.randn(*shape[:2], *[1] * (len(shape) - 2))
    return noise


def pyramid_noise(noise: Tensor, discount: float) -> Tensor:
    """White noise with coarser noise added, each example scaled back to unit variance.

        ε + Σ_i discount^i · up(ε_i),    ε_i of size (height / r_i^i, width / r_i^i),  r_i ~ U(2, 4)

    until a side is one latent long, enlarged bilinearly. Level 0 is a second white noise, which in law makes
    √2 ε of the first, so none is drawn. "Multi-Resolution Noise for Diffusion Model Training", J. Whitaker
    2023, wandb.ai/johnowhitaker/multires_noise.
    """
    height, width = noise.shape[-2:]
    total = math.sqrt(2.0) * noise
    level, rows, columns = 0, height, width
    while min(rows, columns) > 1:
        level += 1
        step = (2 + 2 * torch.rand(()).item()) ** level
        rows, columns = max(1, int(height / step)), max(1, int(width / step))
        coarse = torch.randn(*noise.shape[:-2], rows, columns).flatten(0, -4)
        enlarged = interpolate(coarse, (height, width), mode="bilinear")
        total = total + discount**level * enlarged.view(noise.shape)
    spread = total.flatten(1).std(1)
    return total / spread.view(-1, *[1] * (noise.dim() - 1))


def perturbed(noise: Tensor, strength: float) -> Tensor:
    """ε + γξ with ξ ~ N(0, 1), to be mixed in while the network is still asked for ε: it learns from inputs
    as far off as those that sampling gives it (Ning et al. 2023, arXiv 2301.11706)."""
    return noise + strength * torch.randn(noise.shape).to(noise) if strength else noise
