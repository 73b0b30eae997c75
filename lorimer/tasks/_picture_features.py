"""What a picture shows, as numbers that a latent picture model itself gives: no other network is needed.

A denoiser that is to take noise out of a picture must recognise what is in it, so the activations inside it
are features of the picture (Tang et al. 2023, "Emergent Correspondence from Image Diffusion", arXiv
2306.03881, section 4): mix a fixed amount of noise into the latents, run the base model without a caption,
and read the middle of what it does. They are pooled to a few cells, so that pictures of any shape compare,
and shifting or zooming a little changes little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lorimer
from lorimer.attachment.attached import attached
from lorimer.errors import LorimerError
from lorimer.tasks._diffusion import DiffusionModel
from lorimer.tasks._noise import NoiseProcess

# Copies of the demo's pictures, shifted, zoomed, blurred, mirrored, noisy or in other colours, lie nearest
# to their originals more often at this level than at 10 or 50 %, and than by latents or pixels.
_NOISE_LEVEL = 0.3
_CELLS = 4  # along a side


class PictureFeatures:
    """Features of latents, by the base model whatever adapters are attached.

    Args:
        model: the picture model.
        process: how noise is mixed into its latents.
    """

    def __init__(self, model: DiffusionModel, process: NoiseProcess) -> None:
        self.model, self.process = model, process
        self.block = middle_block(model.denoiser)
        self.conditioning = model.encode_texts([""])

    @torch.no_grad()
    def __call__(self, latents: Sequence[Tensor]) -> Tensor:
        """(pictures, features), float32 on the CPU, for latents (channels, height, width) each; sizes may
        differ. The noise depends on the size alone."""
        seen: list[Any] = []
        handle = self.block.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            with lorimer.enabled(self.model) if attached(self.model) else torch.no_grad():
                rows = [self._row(each, seen) for each in latents]
        finally:
            handle.remove()
        return torch.stack(rows)

    def _row(self, latents: Tensor, seen: list[Any]) -> Tensor:
        device = next(self.model.denoiser.parameters()).device
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        times = self.process.at(torch.tensor([_NOISE_LEVEL]))
        noisy = self.process.add_noise(latents.float().cpu()[None], noise[None], times)
        conditioning = {name: value.to(device) for name, value in self.conditioning.items()}
        seen.clear()
        self.model(noisy.to(device), times.to(device), conditioning)
        return pooled(seen[-1], latents.shape[-2] / latents.shape[-1]).cpu()


def middle_block(denoiser: nn.Module) -> nn.Module:
    """The block whose output is read: of a U-Net the middle one on the way up, of a transformer the middle
    one of its longest stack.

    Raises:
        LorimerError: the network has no such blocks.
    """
    rising = getattr(denoiser, "up_blocks", None)
    stacks = [child for child in denoiser.children() if isinstance(child, nn.ModuleList) and len(child)]
    stack = rising if isinstance(rising, nn.ModuleList) else max(stacks, key=len, default=None)
    if stack is None:
        raise LorimerError(f"{type(denoiser).__name__} has no blocks whose features could be read")
    return stack[len(stack) // 2]


def pooled(output: Any, aspect: float) -> Tensor:
    """A block's output for one picture as one row of features, in the same order for every size.

    Args:
        output: (1, channels, height, width), or (1, tokens, channels), or several with the picture's last.
        aspect: the picture's height over its width. Tokens that fill such a rectangle are pooled by place,
            others, as where the caption's tokens are among them, as a whole.
    """
    while not isinstance(output, Tensor):
        output = output[-1]
    features = output.float()
    if features.dim() == 3:
        count = features.shape[1]
        height = round((count * aspect) ** 0.5)
        if height == 0 or count % height or abs(height * height / count - aspect) > 1e-3 * aspect:
            return features.mean(1).flatten()
        features = features.transpose(1, 2).unflatten(2, (height, count // height))
    return F.adaptive_avg_pool2d(features, _CELLS).flatten()


def apart_within(features: Tensor, group: int) -> float:
    """Mean distance between rows of the same group of `group` consecutive ones."""
    groups = features.split(group)
    return torch.stack([torch.pdist(each).mean() for each in groups]).mean().item()
