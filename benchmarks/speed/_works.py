"""The models that a step is measured on: real shapes, random weights, inputs from a fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Work:
    """One training step without its adapter.

    Attributes:
        name: what its results are called.
        model: the frozen base, in training mode.
        input: what the model's first layer sees; the floor asks for its gradient.
        loss: (model, input) -> the loss, in the precision of the input.
        rank: of the adapters.
        targets, peft_targets: the layers to adapt, as lorimer and as PEFT are told.
    """

    name: str
    model: nn.Module
    input: Tensor
    loss: Callable[[nn.Module, Tensor], Tensor]
    rank: int
    targets: str | list[str]
    peft_targets: str | list[str]


def llama(layers: int = 10, *, batch: int = 4, tokens: int = 256, rank: int = 16, **shape: Any) -> Work:
    """SmolLM2-135M's shape with fewer layers; every linear layer but the tied head, as "all-linear" means."""
    from transformers import LlamaConfig, LlamaForCausalLM

    smollm2 = {
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    config = LlamaConfig(**{**smollm2, **shape}, num_hidden_layers=layers)
    model = _frozen(LlamaForCausalLM(config))
    tokens_of_batch = torch.randint(config.vocab_size, (batch, tokens))
    return Work(
        name=f"llama-{layers}",
        model=model,
        input=model.get_input_embeddings()(tokens_of_batch),
        loss=lambda model, x: model(inputs_embeds=x, labels=tokens_of_batch).loss,
        rank=rank,
        targets="all-linear",
        peft_targets="all-linear",
    )


def resnet50(*, batch: int = 4, pixels: int = 128, rank: int = 8, **shape: Any) -> Work:
    """ResNet-50, every convolution, batch statistics as in training."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    labels = torch.randint(2, (batch,))
    return Work(
        name="resnet50",
        model=_frozen(ResNetForImageClassification(ResNetConfig(**shape))),
        input=torch.randn(batch, 3, pixels, pixels),
        loss=lambda model, x: model(pixel_values=x, labels=labels).loss,
        rank=rank,
        targets=["convolution"],
        peft_targets=["convolution"],
    )


def unet(**options: Any) -> Work:
    """Stable Diffusion 1.5's U-Net at its full size (860 million parameters), the attention projections."""
    size = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
    return _unet("unet", rank=16, **{**size, **options})


def unet_small(**options: Any) -> Work:
    """The same architecture at a fraction of its width; attention, feed-forward and convolutions."""
    size = {"block_out_channels": (64, 128, 256, 256), "cross_attention_dim": 128, "attention_head_dim": 8}
    more = ["ff.net.0.proj", "ff.net.2", "conv1", "conv2"]
    return _unet("unet-small", rank=8, **{"batch": 4, "text": 16, "more_targets": more, **size, **options})


def _unet(
    name: str, rank: int, *, batch: int = 1, text: int = 77, more_targets: tuple[str, ...] = (), **shape: Any
) -> Work:
    """32 x 32 latents and `text` tokens; the loss is that of noise prediction."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = _frozen(UNet2DConditionModel(**shape))
    timesteps = torch.randint(0, 1000, (batch,))
    noise = torch.randn(batch, 4, 32, 32)
    encoded_text = torch.randn(batch, text, shape["cross_attention_dim"])
    targets = ["to_q", "to_k", "to_v", "to_out.0", *more_targets]
    return Work(
        name=name,
        model=model,
        input=torch.randn(batch, 4, 32, 32),
        loss=lambda model, x: F.mse_loss(model(x, timesteps, encoded_text.to(x)).sample, noise.to(x)),
        rank=rank,
        targets=targets,
        peft_targets=targets,
    )


def _frozen(model: Any) -> Any:
    return model.requires_grad_(False).train()


WORKS: dict[str, Callable[..., Work]] = {
    "llama": llama,
    "resnet50": resnet50,
    "unet": unet,
    "unet-small": unet_small,
}


def linears(count: int, width: int) -> nn.Sequential:
    """`count` frozen Linears (width, width) in a row, at a scale that neither blows up nor dies away."""
    torch.manual_seed(0)
    layers = [nn.Linear(width, width, bias=False) for _ in range(count)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=width**-0.5)
    return nn.Sequential(*layers).requires_grad_(False)
