"""Previews of a picture model: one grid of prompts by strengths, always with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lorimer
from lorimer.tasks._diffusion import DiffusionModel, sample
from lorimer.tasks._grid import labelled_grid

if TYPE_CHECKING:
    from PIL.Image import Image


class Previews:
    """Draws what a recipe's `preview:` asks for.

    Args:
        wanted: that section.
        title: what stands above the grid, before the number of steps.
    """

    def __init__(self, wanted: Any, title: str) -> None:
        self.wanted, self.title = wanted, title
        self._base: list[Image] | None = None

    def write(
        self, model: DiffusionModel, prompts: Sequence[str], folder: Path, step: int, resolution: int
    ) -> list[Path]:
        """Write the grid of this step into `folder`; returns its path, or none where nothing is wanted. At
        strength 0 stands the base model."""
        wanted = self.wanted
        rows = [(prompt, seed) for prompt in prompts for seed in wanted.seeds]
        if not rows or not wanted.strengths:
            return []
        columns = [self._column(model, rows, strength, resolution) for strength in wanted.strengths]
        labels = [prompt if len(wanted.seeds) == 1 else f"{prompt}, seed {seed}" for prompt, seed in rows]
        heads = [f"strength {strength:g}" if strength else "base" for strength in wanted.strengths]
        path = folder / f"step-{step:06d}.png"
        folder.mkdir(parents=True, exist_ok=True)
        title = f"{self.title}, after {step} steps"
        labelled_grid(list(zip(*columns, strict=True)), labels, heads, title).save(path)
        return [path]

    def _column(
        self, model: DiffusionModel, rows: list[tuple[str, int]], strength: float, resolution: int
    ) -> list[Image]:
        """The base model's pictures never change, so they are drawn once."""
        if strength == 0.0 and self._base is not None:
            return self._base
        wanted = self.wanted
        with lorimer.strength(model, strength):
            pictures = sample(
                model,
                [prompt for prompt, _ in rows],
                [seed for _, seed in rows],
                steps=wanted.steps,
                guidance=wanted.guidance,
                negative_prompt=wanted.negative_prompt,
                resolution=resolution,
            )
        if strength == 0.0:
            self._base = pictures
        return pictures
