"""How training draws its noise levels, as fractions of the way from the picture (0) to the noise (1).

A density on (0, 1) is given by its quantile function F⁻¹. A batch of n takes

    t_i = F⁻¹((u + i / n) mod 1)        u uniform on [0, 1), i = 0 ... n - 1

so that each example by itself follows the density while the batch is spread evenly over it, which lowers
the variance of its mean (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).

Densities are those of Esser et al. 2024 (arXiv 2403.03206, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lorimer.families._base import TimeSampling

_REFERENCE_TOKENS = 4096  # of a picture of 1024 x 1024 pixels, 16 pixels to a token
_FLUX_SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
_HALVINGS = 50


def spread_positions(count: int) -> Tensor:
    """One draw spread evenly over [0, 1): positions (count,), float32, of torch's global generator."""
    return (torch.rand(()) + torch.arange(count) / count) % 1


def times_at(positions: Tensor, sampling: TimeSampling, shift: float = 1.0) -> Tensor:
    """F⁻¹(positions), in [0, 1]; the density is shifted by `shift` and then cut to `sampling.range`.

    Cutting leaves out what is outside and keeps the density's shape inside. `sampling.shift` is not
    looked at, as it may depend on the picture.
    """
    if sampling.range == (0.0, 1.0):
        return _quantile(positions, sampling, shift)
    low, high = _range_positions(sampling, shift)
    return _quantile(low + (high - low) * positions, sampling, shift).clamp(*sampling.range)


def shifted(times: Tensor, shift: float) -> Tensor:
    """σ' = sσ / (1 + (s - 1)σ): more noise for s > 1 (arXiv 2403.03206, section 5.3.2)."""
    return times if shift == 1.0 else shift * times / (1 + (shift - 1) * times)


def automatic_shift(sampler: Mapping[str, Any], tokens: int) -> float:
    """The shift for a picture of `tokens` tokens, by the config of the model's own sampler.

    Where that shifts dynamically, as FLUX's does, μ is linear in the tokens and s = e^μ (or μ itself):

        μ = base_shift + (max_shift - base_shift) · (tokens - base_tokens) / (max_tokens - base_tokens)

    Otherwise the sampler's shift holds for 1024 x 1024 pixels, and another size of picture changes it by
    the square root of their areas' ratio (arXiv 2403.03206, section 5.3.2).
    """
    if not sampler.get("use_dynamic_shifting"):
        return float(sampler.get("shift") or 1.0) * math.sqrt(tokens / _REFERENCE_TOKENS)
    low, high, base, most = (
        default if sampler.get(name) is None else sampler[name] for name, default in _FLUX_SHIFT.items()
    )
    mu = base + (most - base) * (tokens - low) / (high - low)
    return float(mu) if sampler.get("time_shift_type") == "linear" else math.exp(mu)


def _uniform(positions: Tensor, sampling: TimeSampling) -> Tensor:
    return positions


def _logit_normal(positions: Tensor, sampling: TimeSampling) -> Tensor:
    """logit(t) ~ N(mean, std²): t = sigmoid(mean + std · Φ⁻¹(u))."""
    return torch.sigmoid(sampling.mean + sampling.std * torch.special.ndtri(positions))


def _mode(positions: Tensor, sampling: TimeSampling) -> Tensor:
    """t = 1 - v - s (cos²(πv/2) - 1 + v) at v = 1 - u, which makes it rise with u."""
    u = positions
    return u - sampling.scale * ((math.pi / 2 * u).sin().square() - u)


def _cosmap(positions: Tensor, sampling: TimeSampling) -> Tensor:
    """t = 1 - 1 / (tan(πu/2) + 1), written without the pole of the tangent."""
    sine, cosine = (math.pi / 2 * positions).sin(), (math.pi / 2 * positions).cos()
    return sine / (sine + cosine)


DENSITIES: Mapping[str, Callable[[Tensor, TimeSampling], Tensor]] = {
    "uniform": _uniform,
    "logit-normal": _logit_normal,
    "sigmoid": _logit_normal,  # what FLUX's trainers call it
    "mode": _mode,
    "cosmap": _cosmap,
}


def _quantile(positions: Tensor, sampling: TimeSampling, shift: float) -> Tensor:
    return shifted(DENSITIES[sampling.density](positions, sampling), shift)


@lru_cache(maxsize=256)
def _range_positions(sampling: TimeSampling, shift: float) -> tuple[float, float]:
    """Where the ends of the range lie among the quantiles: F(first) and F(last), by halving intervals."""
    edges = torch.tensor(sampling.range, dtype=torch.float64)
    low, high = torch.zeros_like(edges), torch.ones_like(edges)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = _quantile(middle, sampling, shift) < edges
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    first, last = ((low + high) / 2).tolist()
    return first, last
