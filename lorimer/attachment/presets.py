"""Presets: targets that name a family of layers by one word."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from lorimer.attachment.survey import Thing
from lorimer.layers.kinds import read_weights
from lorimer.layers.linear import is_hugging_face_conv1d

# CLIPAttention, GPT2Attention, LlamaSdpaAttention, Attention, but not CrossAttnDownBlock2D.
_ATTENTION_CLASS = re.compile(r"(Attention|Attn)(V?\d+)?$")
_NORM_CLASS = re.compile(r"Norm(\dd)?$")
_BIAS_NAME = re.compile(r"(^|\.|_)bias(_[^.]*)?$")  # bias, in_proj_bias, bias_ih_l0
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


@dataclass(frozen=True)
class Preset:
    """A target that names a family of layers.

    Attributes:
        description: what it stands for, to end the sentence "It stands for ...".
        paths: those of the things that it names, in the model at hand.
    """

    description: str
    paths: Callable[[Mapping[str, Thing]], list[str]]


def _of(accepts: Callable[[str, Thing], bool]) -> Callable[[Mapping[str, Thing]], list[str]]:
    return lambda things: [path for path, thing in things.items() if accepts(path, thing)]


def _inside_attention(things: Mapping[str, Thing]) -> list[str]:
    owners = tuple(
        path + "." for path, thing in things.items() if _ATTENTION_CLASS.search(type(thing).__name__)
    )
    return [
        path
        for path, thing in things.items()
        if (path.startswith(owners) and _is_linear(thing)) or isinstance(thing, nn.MultiheadAttention)
    ]


def _is_linear(thing: Thing) -> bool:
    """A projection in the widest sense: attention's packed ones included."""
    return isinstance(thing, nn.Linear | nn.MultiheadAttention) or is_hugging_face_conv1d(thing)


def _holds_experts(thing: Thing) -> bool:
    weights = read_weights(thing) if isinstance(thing, nn.Module) else []
    return any(owner._parameters[name].ndim == 3 for owner, name in weights)  # type: ignore[union-attr]


PRESETS = {
    "attention": Preset("projections inside attention modules (to_q, q_proj, ...)", _inside_attention),
    "all-linear": Preset("every Linear", _of(lambda path, thing: _is_linear(thing))),
    "all-linear-conv": Preset(
        "every Linear and convolution",
        _of(lambda path, thing: _is_linear(thing) or isinstance(thing, _CONVOLUTIONS)),
    ),
    "all-linear-experts": Preset(
        "every Linear and every stack of experts' weights",
        _of(lambda path, thing: _is_linear(thing) or _holds_experts(thing)),
    ),
    "norms": Preset(
        "every norm's scale and shift, to train in full",
        _of(lambda path, thing: _NORM_CLASS.search(type(thing).__name__) is not None),
    ),
    "biases": Preset(
        "every bias, to train in full",
        _of(lambda path, thing: isinstance(thing, nn.Parameter) and _BIAS_NAME.search(path) is not None),
    ),
}
