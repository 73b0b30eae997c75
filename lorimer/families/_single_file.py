"""What a family says of its models in one checkpoint file: how to tell them, and where their tensors lie.

The configs, which such files lack, are in `_configs/<family>/`, laid out like a folder of diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorimer.families._layout import Layout, Shapes
from lorimer.families._layouts import DENOISER

Config = dict[str, Any]
CONFIGS = Path(__file__).parent / "_configs"

# What files hold beside the weights of a model, by the code that wrote them: averages, the noise schedule,
# what is computed anew, and what CLIP needs for pictures alone.
_SCHEDULE = (
    "betas|(sqrt_|log_)?\\w*alphas_cumprod\\w*|posterior_\\w+|logvar|denoiser\\.sigmas|model_sampling\\.\\w+"
)
_MARKS = "v_pred|ztsnr|global_step|iteration"
_LEFT_OUT = re.compile(
    rf"model_ema\..*|({_SCHEDULE}|{_MARKS})|(.*\.)?(position_ids|logit_scale|attn_mask|text_projection(\.weight)?)"
)


@dataclass(frozen=True)
class SingleFile:
    """See the module.

    Attributes:
        configs: the folder of its configs within `_configs`.
        signature: the denoiser's keys, without prefix, by which a file is known -> their shapes, None for a
            size that does not matter.
        layouts: component -> the layouts that it may have in a file, given its config.
        derived: what of the denoiser's config the shapes of its native tensors tell.
        predictions: what such a model may predict where files do not say; the first is not taken for
            granted if there are two.
        left_out: further keys that are not needed, a pattern.
    """

    configs: str
    signature: Mapping[str, tuple[int | None, ...]]
    layouts: Mapping[str, Callable[[Config], tuple[Layout, ...]]]
    derived: Callable[[Shapes], Config] = lambda shapes: {}
    predictions: tuple[str, ...] = ("epsilon",)
    left_out: str = ""

    def fits(self, shapes: Shapes) -> bool:
        """Whether a file whose tensors have these shapes is of the family."""
        return any(
            all(_agrees(shapes.get(prefix + key), wanted) for key, wanted in self.signature.items())
            for prefix in DENOISER
        )

    def is_left_out(self, key: str) -> bool:
        """Whether a key that no component needs is known to be of no use."""
        extra = self.left_out and re.fullmatch(self.left_out, key)
        return bool(extra or _LEFT_OUT.fullmatch(key))

    @property
    def folder(self) -> Path:
        """Where the configs are."""
        return CONFIGS / self.configs


def blocks_in(shapes: Shapes, name: str) -> int:
    """How many numbered blocks called `name` there are."""
    numbers = {key.split(".")[1] for key in shapes if key.startswith(name + ".")}
    return len(numbers)


def _agrees(shape: tuple[int, ...] | None, wanted: tuple[int | None, ...]) -> bool:
    return (
        shape is not None
        and len(shape) >= len(wanted)
        and all(want in (None, size) for size, want in zip(shape, wanted, strict=False))
    )
