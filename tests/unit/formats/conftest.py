"""A tiny Stable Diffusion with an adapter on everything that can be adapted, and what it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import AttachedAdapter, LoRA
from tests.tiny_models import tiny_pipeline

LAYERS = [
    "attention",
    "re:unet\\.(conv_in|conv_out|time_embedding\\.linear_[12])",
    "re:unet\\..*\\.(conv1|conv2|conv_shortcut|time_emb_proj|proj_in|proj_out|ff\\.net\\.0\\.proj|ff\\.net\\.2)",
    "re:unet\\..*samplers\\.0\\.conv",
    "re:text_encoder\\..*\\.fc[12]",
]
MIXED_RANKS = {"to_q": 2, "fc1": 3, "conv2": 1}
MIXED_ALPHAS = {"to_v": 1.0, "fc1": 5.0, "conv2": 0.3, "conv_out": 11.0}


class Parts(nn.Module):
    """What of a pipeline is adapted."""

    components = ("unet", "text_encoder")
    family = "sd1"

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.text_encoder = pipeline.text_encoder


@pytest.fixture(scope="session")
def untouched() -> Any:
    return tiny_pipeline()


@pytest.fixture
def pipeline(untouched: Any) -> Callable[[], Any]:
    """Makes pipelines with equal weights."""

    def fresh() -> Any:
        made = copy.copy(untouched)
        made.register_modules(
            unet=copy.deepcopy(untouched.unet), text_encoder=copy.deepcopy(untouched.text_encoder)
        )
        return made

    return fresh


def adapt(
    pipeline: Any,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    targets: Any = LAYERS,
) -> AttachedAdapter:
    """An adapter with alpha != rank on the pipeline's U-Net and text encoder, far off its start."""
    adapter = lorimer.attach(
        Parts(pipeline),
        LoRA(rank=4, alpha=6.0),
        targets,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapter


@torch.no_grad()
def outputs(pipeline: Any) -> tuple[Tensor, Tensor]:
    """What text encoder and U-Net compute for fixed inputs."""
    tokens = torch.arange(60, 68)[None]
    states = pipeline.text_encoder(tokens)[0]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    times = torch.tensor([5, 600])
    return states, pipeline.unet(noise, times, encoder_hidden_states=states.expand(2, -1, -1)).sample
