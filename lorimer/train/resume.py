"""Taking a run's state and putting it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import yaml
from torch import Tensor

from lorimer.adapters._state import AdapterState
from lorimer.errors import DataError, FileFormatError, RecipeError, UsageError
from lorimer.train.average import shown
from lorimer.train.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from lorimer.train.optimizer_state import flatten_state, unflatten_state
from lorimer.train.recipe import flatten
from lorimer.train.run_folder import RunFolder
from lorimer.train.seeding import number_of
from lorimer.train.setup import Setup

# What may differ when a run is resumed: none of it changes the result.
_FREE = (
    "output",
    "preview.",
    "train.log_every",
    "train.evaluate_every",
    "train.preview_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.trackers",
    "train.workers",
)


def capture(setup: Setup, step: int, trainer: dict[str, Any]) -> Checkpoint:
    """The state after `step` steps; `trainer` is what the engine adds of its own. The adapter in it is the
    one that is shown; where that is not the one that trains, both are in the optimiser's part."""
    scaler = setup.accelerator.scaler
    more: dict[str, Mapping[str, Tensor]] = {}
    if setup.controller is not None:
        more["controller"] = setup.controller.tensors()
    if setup.average is not None:
        more["average"] = setup.average.values
    with shown(setup) as differs:
        adapter = setup.adapter.state()
    if differs:
        more["weights"] = setup.named
    return Checkpoint(
        step,
        adapter,
        flatten_state({**setup.optimizer.state_dict(), **more}),
        {
            **trainer,
            "prefix": setup.prefix is not None,
            "scaler": None if scaler is None else scaler.state_dict(),
            **_identity(setup),
            "recipe": setup.recipe.as_dict(),
        },
    )


def had_prefix(folder: RunFolder) -> bool | None:
    """Whether the run that is to go on stored what its frozen layers give; None where it has not begun."""
    place = newest_checkpoint(folder.checkpoints) if folder.recipe.exists() else None
    return None if place is None else read_checkpoint(place).trainer.get("prefix", False)


def restore(setup: Setup, folder: RunFolder) -> dict[str, Any] | None:
    """Put back the newest complete checkpoint in `folder`; returns its trainer part, or None where there is
    none and the run starts at its first step.

    Raises:
        RecipeError: the recipe differs from the run's in a way that changes results; fields are named.
        UsageError: the number of processes differs.
        DataError: the base model or the number of examples is not what it was.
        FileFormatError: the checkpoint does not fit the model.
    """
    if not folder.recipe.exists():
        return None
    place = newest_checkpoint(folder.checkpoints)
    if place is None:
        _require_same_recipe(yaml.safe_load(folder.recipe.read_text(encoding="utf-8")), setup)
        return None
    checkpoint = read_checkpoint(place)
    trainer = checkpoint.trainer
    _require_same_recipe(trainer["recipe"], setup)
    _require_same_run(trainer, _identity(setup))
    layers, saved = setup.adapter.layers, _tensors_by_path(checkpoint.adapter)
    if layers.keys() != saved.keys():
        raise FileFormatError(f"{place}: its adapter sits on other layers than the recipe's")
    for path, tensors in saved.items():
        layers[path].load_state_dict(tensors)
    state = unflatten_state(*checkpoint.optimizer)
    _copy_into({} if setup.controller is None else setup.controller.tensors(), state, "controller")
    _copy_into({} if setup.average is None else setup.average.values, state, "average")
    _copy_into(setup.named, state, "weights")
    setup.optimizer.load_state_dict(state)
    if setup.accelerator.scaler is not None:
        setup.accelerator.scaler.load_state_dict(trainer["scaler"])
    return {"step": checkpoint.step, **trainer}


@torch.no_grad()
def _copy_into(own: Mapping[str, Tensor], state: dict[str, Any], part: str) -> None:
    """Copy the tensors of a part of the saved state, if it has that part, into those of the same names."""
    for name, value in state.pop(part, {}).items():
        own[name].copy_(value)


def _tensors_by_path(adapter: AdapterState) -> dict[str, dict[str, Tensor]]:
    """Path -> the tensors there, of what is trained in full too."""
    layers = {path: layer.tensors for path, layer in adapter.layers.items()}
    full = {name.removesuffix(".weight"): {"value": each.value} for name, each in adapter.full.items()}
    return layers | full


def _identity(setup: Setup) -> dict[str, Any]:
    """What a run cannot change under way beside its recipe."""
    return {
        "processes": setup.accelerator.num_processes,
        "examples": setup.order.examples,
        "base_model": f"{number_of(*(f'{name} {value}' for name, value in sorted(setup.base.items()))):016x}",
    }


def _require_same_run(former: dict[str, Any], now: dict[str, Any]) -> None:
    if former["processes"] != now["processes"]:
        raise UsageError(
            f"the run used {former['processes']} processes and now there are {now['processes']}; resume it "
            "with as many, so that it goes on as it would have"
        )
    if former["examples"] != now["examples"]:
        raise DataError(
            f"the run learned from {former['examples']} examples and now there are {now['examples']}"
        )
    if former["base_model"] != now["base_model"]:
        raise DataError("the base model's weights are not those that the run began with")


def _require_same_recipe(former: dict[str, Any], setup: Setup) -> None:
    recipe = setup.recipe
    before, after = flatten(former), recipe.flat()
    differences = [
        f"{place}: was {before.get(place)!r}, is {after.get(place)!r}"
        for place in dict.fromkeys([*before, *after])
        if before.get(place) != after.get(place) and not place.startswith(_FREE)
    ]
    planned = recipe.train.schedule != "constant" or setup.controller is not None  # from first to last step
    if not planned and before.get("train.steps", 0) <= recipe.train.steps:
        differences = [text for text in differences if not text.startswith("train.steps:")]
    if differences:
        raise RecipeError(
            "\n  ".join(
                [
                    "the recipe differs from that of the run to resume; put it back or begin anew:",
                    *differences,
                ]
            )
        )
