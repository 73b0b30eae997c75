"""NanoDet-g, a one-stage detector of plain convolutions (https://github.com/RangiLyu/nanodet, Apache-2.0).

    picture -> backbone -> features at strides 8, 16, 32 -> neck (PAN) -> head -> a score of each class and a
                                                                                 box at every point

The original's batch norms are folded into its convolutions, and its last convolution of each level, which
gives scores and distances at once, is two here: so classes can come and go without touching boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import ConfigDict, Field, PositiveFloat, with_config
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu

STRIDES = (8, 16, 32)
_SLOPE = 0.1
_Blocks = Annotated[int, Field(ge=1, le=64)]


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class NanoDetConfig:
    """The sizes of a NanoDet-g; those by default are the published one's.

    Attributes:
        class_names: in the order of the head's scores.
        input_size: pixels of the square picture that it learned on.
        mean, std: of each channel in [0, 255], blue first.
        stem_channels: of the first convolution; each stage after the first has twice the former's.
        residual_blocks: of each of the four stages.
        neck_channels: of the features at every stride.
        bins: a side's distance from a point is a distribution over 0, 1, ..., bins - 1 strides.
    """

    class_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=10_000)]
    input_size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 416
    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (57.375, 57.12, 58.395)
    stem_channels: Annotated[int, Field(ge=2, le=1024, multiple_of=2)] = 32
    residual_blocks: tuple[_Blocks, _Blocks, _Blocks, _Blocks] = (1, 2, 2, 3)
    neck_channels: Annotated[int, Field(ge=1, le=4096)] = 128
    bins: Annotated[int, Field(ge=2, le=64)] = 11


class NanoDet(nn.Module):
    """The network of a config. Its children are `backbone`, `neck` and `head`."""

    def __init__(self, config: NanoDetConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config.stem_channels, config.residual_blocks)
        self.neck = Neck(self.backbone.channels, config.neck_channels)
        self.head = Head(config.neck_channels, len(config.class_names), config.bins)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Blue-green-red, normalised pixels (B, 3, height, width) -> what it says at the points of
        `points_of`: logits (B, P, classes) of the scores, and logits (B, P, 4, bins) of the distances from
        the point to left, top, right and bottom."""
        # In this order of memory a step takes three quarters of the time.
        pixels = pixels.to(self.backbone.stem.conv.weight.dtype, memory_format=torch.channels_last)
        logits, distances = self.head(self.neck(self.backbone(pixels)))
        return logits, distances


class Backbone(nn.Module):
    """A cross-stage partial network (CSPNet, arXiv 1911.11929), `CustomCspNet` in the original.

    Attributes:
        channels: of its features at strides 8, 16 and 32.
    """

    def __init__(self, stem_channels: int, residual_blocks: Sequence[int]) -> None:
        super().__init__()
        widths = [stem_channels * 2**stage for stage in range(len(residual_blocks))]
        self.stem = Convolution(3, stem_channels, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            CspStage(width, blocks, stride=2 if stage else 1)
            for stage, (width, blocks) in enumerate(zip(widths, residual_blocks, strict=True))
        )
        self.channels = [2 * width for width in widths[1:]]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pixels (B, 3, height, width) -> features at strides 8, 16 and 32."""
        features, found = self.pool(self.stem(pixels)), []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        return found[1:]


class CspStage(nn.Module):
    """Features, and the same again after residual blocks, side by side: (B, C, h, w) -> (B, 2C, ...)."""

    def __init__(self, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.in_conv = Convolution(channels, channels, stride)
        self.res_blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.res_out_conv = Convolution(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 2C, h / stride, w / stride)."""
        features = self.in_conv(features)
        return torch.cat([self.res_out_conv(self.res_blocks(features)), features], dim=1)


class ResidualBlock(nn.Module):
    """Half as many features, and what follows from them, side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_conv = Convolution(channels, channels // 2)
        self.mid_conv = Convolution(channels // 2, channels // 2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        features = self.in_conv(features)
        return torch.cat([self.mid_conv(features), features], dim=1)


class Neck(nn.Module):
    """A path aggregation network (PAN, arXiv 1803.01534) whose paths are resizing and addition alone."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of each stride, finest first -> as many, all (B, width, ...)."""
        levels = [conv(each) for conv, each in zip(self.lateral_convs, features, strict=True)]
        for level in range(len(levels) - 1, 0, -1):
            levels[level - 1] = levels[level - 1] + _resized(levels[level], levels[level - 1])
        for level in range(len(levels) - 1):
            levels[level + 1] = levels[level + 1] + _resized(levels[level], levels[level + 1])
        return levels


class Head(nn.Module):
    """At every point of every level the scores of the classes and the distances to a box's sides."""

    def __init__(self, width: int, classes: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.convs = nn.ModuleList(Convolution(width, width) for _ in STRIDES)
        self.scores = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in STRIDES)
        self.distances = nn.ModuleList(nn.Conv2d(width, 4 * bins, 1) for _ in STRIDES)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features of each level -> logits (B, P, classes) and (B, P, 4, bins), as `NanoDet`."""
        features = [conv(level) for conv, level in zip(self.convs, levels, strict=True)]
        logits = _at_points(self.scores, features)
        return logits, _at_points(self.distances, features).unflatten(2, (4, self.bins))


class Convolution(nn.Module):
    """3 x 3, padded, then a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        return leaky_relu(self.conv(features), _SLOPE)


def points_of(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where a picture's P points are and what their strides are: (P, 2) x, y in pixels, and (P,).

    A level has a point in the middle of each of its cells, row by row; the finest level is first.
    """
    points, strides = [], []
    for stride in STRIDES:
        y, x = (torch.arange(length // stride) + 0.5 for length in (height, width))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1) * stride
        points.append(grid)
        strides.append(torch.full((len(grid),), float(stride)))
    return torch.cat(points), torch.cat(strides)


def _at_points(convolutions: nn.ModuleList, levels: Sequence[Tensor]) -> Tensor:
    """Each level's convolution of its features, (B, P, channels)."""
    made = [conv(each).flatten(2) for conv, each in zip(convolutions, levels, strict=True)]
    return torch.cat(made, dim=2).transpose(1, 2)


def _resized(features: Tensor, like: Tensor) -> Tensor:
    return interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)
