"""A small model of each family, made of the layers that its file names speak of."""

from __future__ import annotations

import re

import torch
from torch import nn

import lorimer
from lorimer import AdapterState, registry
from lorimer.families._names import ComponentNames
from tests.contracts.format_cases import tree
from tests.contracts.method_cases import make

FAMILIES = registry.names("family")
WIDTH = 4  # inputs of every layer
# Paths of families whose names need no rules.
_CLIP = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.11.mlp.fc1")


def family_model(family: str) -> nn.Module:
    """Of each kind of layer one, under its path in such a model; all Linear."""
    names = registry.get("family", family).kohya
    leaves: dict[str, nn.Module] = {}
    for component, own in names.components.items():
        leaves.update({f"{component}.{path}": layer for path, layer in _layers(own).items()})
    model = tree(leaves)
    model.components = tuple(names.components)  # type: ignore[assignment]
    model.family = family  # type: ignore[assignment]
    return model


def _layers(names: ComponentNames) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    shapes = set()
    for number, rule in enumerate(names.rules):
        shape = re.sub(r"\d+", "", rule.native)
        if shape in shapes:
            continue
        shapes.add(shape)
        for module, share in zip(rule.modules, rule.shares, strict=True):
            rows = 2 * WIDTH if rule.halves_swapped else 3 * share
            found[module.replace("{}", str(number))] = nn.Linear(WIDTH, rows)
    if not names.rules:
        level = "" if names.level else "text_model."
        found = {level + path: nn.Linear(WIDTH, WIDTH) for path in _CLIP}
    return found


def family_state(
    family: str, method: str = "lora", dtype: torch.dtype = torch.float32, even: bool = False
) -> AdapterState:
    """An adapter on all of it, off its start, with several ranks; with `even` scales all alphas are as the
    ranks, else they are mixed, within layers that files keep as one, too."""
    model = family_model(family)
    plain = make(method).with_rank(2, 3.0)
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    adapter = lorimer.attach(
        model,
        plain,
        layers,
        dtype=dtype,
        rank_pattern={layers[-1]: 1, "to_k": 3},
        alpha_pattern={layers[-1]: 1.5, "to_k": 4.5} | ({} if even else {layers[1]: 0.7, "to_v": 16}),
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = adapter.state()
    state.metadata.update({"title": "Ink", "trigger": "in ink style"})
    return state
