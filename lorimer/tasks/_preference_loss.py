"""Losses of preferences: of two answers to one prompt, the chosen one is to become the likelier.

All take log-likelihoods of answers, one a pair, and give the mean over pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimisation: -log σ(β·m), with the margin
    m = (chosen - reference_chosen) - (rejected - reference_rejected).

    Source: arXiv 2305.18290, equation 7; with a share of labels taken to be wrong, cDPO: (1 - ε)·that, plus
    ε times the loss of the pair the other way round.

    Args:
        chosen, rejected: (pairs,) summed log-likelihoods under the model that trains.
        reference_chosen, reference_rejected: (pairs,) the same under the reference model.
        beta: β, how dear it is to depart from the reference.
        label_smoothing: ε in [0, 0.5).
    """
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    losses = -(1.0 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return losses.mean()


def ipo(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    """Identity preference optimisation: (m - 1/(2β))², the margin m as of `dpo`.

    Source: arXiv 2310.12036, equation 17. Takes mean log-likelihoods of a token, so that long answers do not
    count more.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return (margin - 0.5 / beta).square().mean()


def orpo(chosen: Tensor, rejected: Tensor, weight: float) -> Tensor:
    """Odds-ratio preference optimisation: -log p of the chosen answers, plus weight · -log σ(log-odds ratio).

    Source: arXiv 2403.07691, equations 4 to 7. The odds of an answer are p / (1 - p), with p the geometric
    mean of its tokens' probabilities; it needs no reference.

    Args:
        chosen, rejected: (pairs,) mean log-likelihoods of a token, below 0.
        weight: λ.
    """
    ratio = _log_odds(chosen) - _log_odds(rejected)
    return -(chosen + weight * logsigmoid(ratio)).mean()


def _log_odds(log_probability: Tensor) -> Tensor:
    """log(p / (1 - p)) for log p < 0; `expm1` keeps it right where p is near 1."""
    tiny = torch.finfo(log_probability.dtype).eps
    return log_probability - torch.log(-torch.expm1(log_probability.clamp(max=-tiny)))
