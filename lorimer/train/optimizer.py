"""Optimisers: those of well-kept packages behind one name each, and the one way to take their steps."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from lorimer.errors import MissingDependencyError, RecipeError, suggest
from lorimer.train.schedule import factor
from lorimer.train.sections import TrainSection

Groups = Sequence[Mapping[str, Any]]
_OUR_FIELDS = {"self", "params", "lr", "weight_decay", "fused"}  # set by fields of their own, or by us


@dataclass(frozen=True)
class Kind:
    """An optimiser that a recipe may name.

    Attributes:
        module, class_name: where it comes from.
        package: what pip installs, None for torch's own.
        options: where we differ from the package's defaults.
        one_rate: it finds the rate by itself, and for all parameters together.
        averages: it keeps an average of the weights, and which of both the parameters hold is switched by
            its `train()` and `eval()`. The step spends the gradient.
    """

    module: str
    class_name: str
    package: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    one_rate: bool = False
    averages: bool = False


KINDS: dict[str, Kind] = {
    # Fused: the whole update is one pass, and a step with `found_inf` set changes nothing, which spares
    # the CPU waiting for the GPU to learn whether a gradient was finite.
    "adamw": Kind("torch.optim", "AdamW", options={"fused": True}),
    "sgd": Kind("torch.optim", "SGD", options={"fused": True}),
    "adamw-8bit": Kind("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),  # arXiv 2110.02861
    # Steps as large as the recipe's rate: steps relative to a tensor's size would leave LoRA's B, which
    # starts at zero, where it is. arXiv 1804.04235
    "adafactor": Kind(
        "transformers.optimization",
        "Adafactor",
        "transformers",
        {"scale_parameter": False, "relative_step": False},
    ),
    "came": Kind("came_pytorch", "CAME", "came-pytorch"),  # arXiv 2307.02047
    "lion": Kind("lion_pytorch", "Lion", "lion-pytorch"),  # arXiv 2302.06675
    "prodigy": Kind("prodigyopt", "Prodigy", "prodigyopt", one_rate=True),  # arXiv 2306.06101
    "schedule-free": Kind(  # arXiv 2405.15682
        "schedulefree", "AdamWScheduleFree", "schedulefree", averages=True
    ),
}


def require_optimizer(train: TrainSection, *, several_rates: bool) -> None:
    """Raise unless the recipe's optimiser can do what the recipe asks of it.

    Args:
        several_rates: whether `adapter.learning_rate_pattern` gives some layers another rate.

    Raises:
        MissingDependencyError: its package is not installed.
        RecipeError: it has no such option, or does not go with another field.
    """
    kind = KINDS[train.optimizer]
    known = inspect.signature(_constructor(train.optimizer)).parameters.keys() - _OUR_FIELDS
    for name in train.optimizer_options:
        if name not in known:
            raise RecipeError(
                f"train.optimizer_options: {train.optimizer} has no option {name!r}.{suggest(name, known)} "
                f"Known: {', '.join(sorted(known))}"
            )
    if kind.one_rate and (several_rates or train.fast_ratio != 1):
        raise RecipeError(
            f"train.optimizer: {train.optimizer} finds one rate for all parameters; leave out "
            "adapter.learning_rate_pattern and train.fast_ratio"
        )
    if kind.averages and train.schedule != "constant":
        raise RecipeError(f"train.schedule: {train.optimizer} takes the place of a schedule; use constant")
    if kind.averages and train.ema is not None:
        raise RecipeError(f"train.ema: {train.optimizer} keeps an average of its own; leave it out")


def build_optimizer(groups: Groups, train: TrainSection) -> torch.optim.Optimizer:
    """The recipe's optimiser over `groups`; each remembers its full rate.

    Raises:
        MissingDependencyError: its package is not installed.
        RecipeError: it does not take the options.
    """
    kind, constructor = KINDS[train.optimizer], _constructor(train.optimizer)
    given = [{**group, "full_rate": group["lr"]} for group in groups]
    options = {**kind.options, **train.optimizer_options}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Prodigy speaks of its weight decay
            made: torch.optim.Optimizer = constructor(
                given, lr=train.learning_rate, weight_decay=train.weight_decay, **options
            )
    except (AssertionError, TypeError, ValueError) as error:
        raise RecipeError(f"train.optimizer_options: {train.optimizer} refuses them: {error}") from error
    if kind.averages:
        made.train()  # type: ignore[attr-defined]
    return made


def set_learning_rate(optimizer: torch.optim.Optimizer, train: TrainSection, step: int) -> float:
    """Give every group its rate for `step`; returns the rate of groups that have the recipe's."""
    now = factor(train.schedule, step, train.steps, train.warmup_steps)
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * now
    return train.learning_rate * now


def learning_rate_now(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the first group in the last step, times the factor that Prodigy has found."""
    first = optimizer.param_groups[0]
    return float(first["lr"] * first.get("d", 1.0))


def step_if_finite(optimizer: torch.optim.Optimizer, finite: Tensor, scaler: GradScaler | None) -> None:
    """Take a step that changes nothing where `finite` (a scalar bool tensor) is false.

    A fused optimiser looks at it on its device; for any other this waits for the device.
    """
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    if optimizer.defaults.get("fused") or finite.item():
        optimizer.step() if scaler is None else scaler.step(optimizer)
    if scaler is not None:
        scaler.update()


def state_bytes(parameters: Iterable[Tensor], train: TrainSection) -> int:
    """Bytes that the optimiser will keep for `parameters`: measured, by a step on tensors of ones of each
    shape among them."""
    shapes: dict[tuple[int, ...], int] = {}
    device = torch.device("cpu")
    for parameter in parameters:
        shapes[tuple(parameter.shape)] = shapes.get(tuple(parameter.shape), 0) + 1
        device = parameter.device
    total = 0
    for shape, count in shapes.items():
        probe = nn.Parameter(torch.ones(shape, device=device))
        probe.grad = torch.zeros_like(probe)
        optimizer = build_optimizer([{"params": [probe], "lr": train.learning_rate}], train)
        optimizer.step()
        tensors = (each for each in optimizer.state[probe].values() if isinstance(each, Tensor))
        total += count * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


def _constructor(name: str) -> Any:
    kind = KINDS[name]
    try:
        return getattr(importlib.import_module(kind.module), kind.class_name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'train.optimizer: {name} needs {kind.package}: pip install "lorimer[optimizers]"'
        ) from error
