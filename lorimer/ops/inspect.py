"""What an adapter file holds, told without a model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorimer import registry
from lorimer.adapters._state import AdapterState, LayerState
from lorimer.ops.files import recognise

_FACTS = ("title", "trigger", "base_model", "resolution", "steps", "license")  # shown in this order


@dataclass(frozen=True)
class LayerFacts:
    """One adapted layer; `norm` is the Frobenius norm of its update, None where the method has no factors."""

    path: str
    rank: int
    alpha: float
    parameters: int
    norm: float | None


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter file in figures.

    Attributes:
        path, format, bytes: the file or folder, its format, and the size of all its files.
        method, config: the method's registered name and its fields beside rank and alpha.
        dtypes: precisions of the tensors, e.g. ("float16",).
        layers: one row per adapted layer.
        targets: beginning and end of paths, as "unet.*.to_q" -> how many layers it stands for.
        full: what was trained in full, as in the model's state dict -> how many numbers of it.
        parameters: numbers in all tensors.
        norm: Frobenius norm of the whole update, None where a layer's is not known.
        metadata: facts that the file carries: "base_model", "title", "trigger", "steps", ...
    """

    path: str
    format: str
    bytes: int
    method: str
    config: dict[str, Any]
    dtypes: tuple[str, ...]
    layers: tuple[LayerFacts, ...]
    targets: dict[str, int]
    full: dict[str, int]
    parameters: int
    norm: float | None
    metadata: dict[str, str]

    @property
    def ranks(self) -> dict[int, int]:
        """Rank -> how many layers have it, most frequent first."""
        return dict(Counter(layer.rank for layer in self.layers).most_common())

    @property
    def alphas(self) -> dict[float, int]:
        """Alpha -> how many layers have it, most frequent first."""
        return dict(Counter(layer.alpha for layer in self.layers).most_common())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for programs."""
        return {**asdict(self), "ranks": self.ranks, "alphas": self.alphas}

    def lines(self) -> list[str]:
        """Lines for people."""
        facts = [
            ("file", f"{self.path}  ({self.format} format, {self.bytes / 1e6:.2f} MB)"),
            ("method", " ".join([self.method, *(f"{key}={value}" for key, value in self.config.items())])),
            ("rank", _counted(self.ranks)),
            ("alpha", _counted(self.alphas)),
            ("precision", ", ".join(self.dtypes)),
            ("parameters", f"{self.parameters:,} in {self._places()}"),
            ("update", "norm not known for this method" if self.norm is None else f"norm {self.norm:.4g}"),
            *((fact, self.metadata[fact]) for fact in _FACTS if fact in self.metadata),
        ]
        lines = [f"{name.replace('_', ' '):<11} {value}" for name, value in facts if value]
        if self.targets:
            lines += ["targets", *(f"  {count:4d} x {pattern}" for pattern, count in self.targets.items())]
        if self.full:
            lines += ["in full", *(f"  {numbers:,} of {name}" for name, numbers in self.full.items())]
        known = [(layer.norm, layer.path) for layer in self.layers if layer.norm]
        if known:
            lines += [
                "strongest",
                *(f"  {norm:.4g}  {path}" for norm, path in sorted(known, reverse=True)[:5]),
            ]
        # What a file says of itself must not move the cursor or colour the terminal.
        return ["".join(letter if letter.isprintable() else "�" for letter in line)[:300] for line in lines]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _places(self) -> str:
        in_full = f" and {len(self.full)} parameters in full" if self.full else ""
        return f"{len(self.layers)} layers{in_full}"


def inspect(path: str | Path) -> AdapterFacts:
    """Everything that an adapter file or folder tells by itself.

    Raises:
        FileFormatError: no format recognises it, or it is broken.
    """
    path = Path(path)
    format = recognise(path)
    state = format.read(path)
    layers = tuple(
        LayerFacts(name, layer.rank, layer.alpha, _numbers(layer), update_norm(state, name))
        for name, layer in state.layers.items()
    )
    norms = [layer.norm for layer in layers if layer.norm is not None]
    full = {name: parameter.value for name, parameter in state.full.items()}
    tensors = [tensor for layer in state.layers.values() for tensor in layer.tensors.values()]
    tensors += full.values()
    return AdapterFacts(
        path=str(path),
        format=format.name,
        bytes=sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()),
        method=state.method,
        config=state.config,
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        layers=layers,
        targets=_patterns(state.layers),
        full={name: value.numel() for name, value in full.items()},
        parameters=sum(tensor.numel() for tensor in tensors),
        norm=math.hypot(*norms) if layers and len(norms) == len(layers) else None,
        metadata=state.metadata,
    )


def update_norm(state: AdapterState, path: str) -> float | None:
    """Frobenius norm of the update of the layer at `path`, ‖scale · B·A‖, or None where the method's update
    is no product of two factors.

    Never forms the product: ‖B·A‖² = trace((BᵀB)(AAᵀ)), two rank x rank matrices.
    """
    layer = state.layers[path]
    wide = replace(layer, tensors={name: tensor.double() for name, tensor in layer.tensors.items()})
    factors = registry.get("method", state.method).factors(wide, state.config)
    if factors is None:
        return None
    up, down = factors
    squared: Tensor = torch.sum((up.mT @ up) * (down @ down.mT))
    return math.sqrt(max(squared.item(), 0.0))


def _numbers(layer: LayerState) -> int:
    return sum(tensor.numel() for tensor in layer.tensors.values())


def _patterns(paths: Iterable[str]) -> dict[str, int]:
    """`unet.down_blocks.0.attentions.1.to_out.0` and its like as `unet.*.to_out.0`, counted."""
    return dict(Counter(re.sub(r"^([^.]+)\..*\.([^.\d][^.]*(\.\d+)*)$", r"\1.*.\2", path) for path in paths))


def _counted(values: dict[Any, int]) -> str:
    """`8` or `8 (120 layers), 4 (8 layers)`."""
    if len(values) == 1:
        return f"{next(iter(values)):g}"
    return ", ".join(f"{value:g} ({count} layers)" for value, count in values.items())
