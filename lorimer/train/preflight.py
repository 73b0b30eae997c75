"""What is known before the first step: what trains, on what, for how long and in how much memory."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device

from lorimer.attachment.report import Report
from lorimer.errors import LorimerError
from lorimer.layers.quantise import weight_bytes
from lorimer.train.events import describe_bytes, describe_seconds
from lorimer.train.measure import Memory, Peak, limit, peak
from lorimer.train.optimizer import KINDS, state_bytes
from lorimer.train.order import MicroBatch, SeededExamples
from lorimer.train.prefix import choose_prefix
from lorimer.train.seeding import seed_all
from lorimer.train.setup import Setup
from lorimer.train.step import micro_loss

LONG_PASS = 5.0  # seconds; beyond these, warming up is a small part of a pass


@dataclass(frozen=True)
class Preflight:
    """Facts before the first step.

    Attributes:
        adapter: what is attached where.
        task: the task's own lines: what was read, how much, what was skipped and why.
        device, precision: where and how it runs.
        examples, steps, epochs: how much there is to learn from, and how often.
        loss: of the first batch, before training.
        memory: what a step takes, by what takes it.
        notes: how the base is kept; and the learning rates, where there are several.
        seconds: estimated for all steps, from a dry pass; evaluations and previews come on top.
        warnings: facts that a person may want to act upon.
        example: the first example as the model sees it, where that is text.
    """

    adapter: Report
    task: tuple[str, ...]
    device: str
    precision: str
    examples: int
    steps: int
    epochs: float
    loss: float
    memory: Memory
    notes: tuple[str, ...]
    seconds: float
    warnings: tuple[str, ...]
    example: str = ""

    def lines(self) -> list[str]:
        """For people."""
        return [
            *str(self.adapter).splitlines(),
            *self.task,
            f"{self.examples:,} examples, {self.steps:,} steps, {self.epochs:.3g} epochs",
            *self.notes,
            f"{self.device}, {self.precision}; about {describe_seconds(self.seconds)}; "
            f"loss before training {self.loss:.4f}",
            self.memory.line(),
            *(f"warning: {text}" for text in self.warnings),
        ]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "memory_bytes": self.memory.total}


def inspect(setup: Setup, had_prefix: bool | None = None) -> Preflight:
    """Measure with a dry forward and backward pass, which leaves weights and optimiser as they are.

    Args:
        had_prefix: of a run that is resumed, whether it stores what its frozen layers give.

    Raises:
        LorimerError: there is not enough memory.
    """
    train, order = setup.recipe.train, setup.order
    device = setup.accelerator.device
    with peak(device) as used:
        loss, seconds, without_gradient = _dry_run(setup)
    setup.prefix = stored = choose_prefix(setup, seconds, had_prefix)
    memory = _memory(setup, used)
    warnings = _warnings(setup, memory, loss, without_gradient)
    passes = -(-order.examples_per_step // (order.batch_size * order.ranks))
    epochs = train.steps / order.steps_per_epoch
    return Preflight(
        adapter=setup.adapter.report(),
        task=(*_presets(setup), *setup.task.describe(setup.model, setup.data)),
        device=_device_name(device),
        precision={"no": "float32", "fp16": "float16 mixed", "bf16": "bfloat16 mixed"}[train.mixed_precision],
        examples=order.examples,
        steps=train.steps,
        epochs=epochs,
        loss=loss,
        seconds=(seconds if stored is None else stored.seconds) * passes * train.steps,
        memory=memory,
        notes=(*setup.notes, *_rates(setup), *([] if stored is None else [stored.note])),
        warnings=tuple(warnings),
        example=setup.task.example(),
    )


def _warnings(setup: Setup, memory: Memory, loss: float, without_gradient: list[str]) -> list[str]:
    """Facts that a person may want to act upon."""
    train, order, warnings = setup.recipe.train, setup.order, []
    if order.examples < order.examples_per_step:
        warnings.append(
            f"a step asks for {order.examples_per_step} examples and there are {order.examples}: "
            "every step reads all of them"
        )
    if train.warmup_steps >= train.steps:
        warnings.append("the whole run is warm-up: train.warmup_steps is not below train.steps")
    if without_gradient:
        warnings.append(f"no gradient reaches {_some(without_gradient)}")
    if memory.nearly_full:
        warnings.append(_advice(setup, memory))
    if KINDS[train.optimizer].one_rate and train.learning_rate < 0.1:
        warnings.append(f"{train.optimizer} finds the rate by itself; train.learning_rate=1 is usual")
    if setup.accelerator.device.type == "cpu" and _is_emulated(train.mixed_precision):
        warnings.append(
            f"this processor has no products in {train.mixed_precision}: train.mixed_precision=no is several "
            "times as quick"
        )
    if not math.isfinite(loss):
        warnings.append(f"the loss of the first batch is {loss}")
    return warnings + _about_offload(setup)


def _is_emulated(precision: str) -> bool:
    """Whether the processor multiplies numbers of this precision by way of others."""
    tell = {"bf16": "_is_mkldnn_bf16_supported", "fp16": "_is_mkldnn_fp16_supported"}.get(precision)
    ops = torch.ops.mkldnn
    return tell is not None and torch.backends.mkldnn.is_available() and not getattr(ops, tell)()


def _presets(setup: Setup) -> list[str]:
    """Which presets the recipe's fields come from where it does not say them."""
    names = setup.recipe.preset
    return [f"preset{'s' * (len(names) > 1)} {', '.join(names)}"] if names else []


def snapshot(setup: Setup) -> dict[str, torch.Tensor]:
    """A copy of every tensor of the adapter."""
    return {name: parameter.detach().clone() for name, parameter in setup.adapter.named_parameters()}


def require_moved(setup: Setup, before: dict[str, torch.Tensor], steps: int) -> None:
    """Raise `LorimerError` where a tensor of the adapter is as it was `steps` steps ago, or most are, where
    layers may rest."""
    still = [name for name, value in setup.adapter.named_parameters() if torch.equal(value, before[name])]
    few = len(still) <= len(before) // 2 if setup.task.rests else not still
    if not few:
        raise LorimerError(
            f"after {steps} steps {len(still)} of {len(before)} tensors of the adapter have not moved: "
            f"{_some(still)}. These layers take no part in the loss; name them in adapter.exclude, or "
            "correct the model or the loss"
        )


def _dry_run(setup: Setup) -> tuple[float, float, list[str]]:
    """Loss of the first batch, seconds of a forward and backward pass, tensors that got no gradient."""
    micro = setup.order.step(0)[0] if setup.order.step(0) else MicroBatch(0, (0,), 1.0)
    data = SeededExamples(setup.data, setup.recipe.train.seed)
    batch = setup.task.collate([data[0, example] for example in micro.examples])
    batch = send_to_device(batch, setup.accelerator.device)
    setup.set_training()
    loss, seconds = torch.zeros(()), 0.0
    try:
        for _ in range(2):  # the first pass also warms up; the second is timed, unless one is long enough
            if seconds > LONG_PASS:
                break
            _wait(setup.accelerator.device)
            begin = time.perf_counter()
            seed_all(setup.recipe.train.seed, "dry run")
            loss = micro_loss(setup, batch)
            setup.accelerator.backward(loss)
            _wait(setup.accelerator.device)
            seconds = time.perf_counter() - begin
        named = setup.adapter.named_parameters()
        without_gradient = [name for name, parameter in named if parameter.grad is None]
    except torch.OutOfMemoryError as error:
        raise LorimerError(
            "not enough memory for one batch: lower train.batch_size (and raise "
            "train.gradient_accumulation_steps to keep the result), or set train.gradient_checkpointing or "
            f"train.mixed_precision. {error}"
        ) from error
    finally:
        setup.zero_grad()
    return loss.item(), seconds, without_gradient


def _memory(setup: Setup, used: Peak) -> Memory:
    """What a step takes, from what the dry pass used."""
    device, train = setup.accelerator.device, setup.recipe.train
    adapter = sum(each.numel() * each.element_size() for each in setup.parameters)
    gradients = sum(each.numel() * 4 for each in setup.parameters)
    averages = gradients if setup.average is not None else 0
    own = {id(each) for each in setup.parameters}
    frozen = weight_bytes(setup.model, without=own, on=device.type)
    activations = used.at_most - used.before - gradients
    return Memory(
        weights=frozen,
        adapter=adapter + gradients,
        optimizer=state_bytes(setup.parameters, train) + averages,
        activations=max(activations, 0),
        other=max(used.before - frozen - adapter - averages, 0) if device.type == "cpu" else 0,
        limit=limit(device),
        kind="GPU memory" if device.type == "cuda" else "main memory",
    )


def _advice(setup: Setup, memory: Memory) -> str:
    """What would take less, with estimates that are marked as such."""
    train, has = setup.recipe.train, describe_bytes
    ways = []
    if not train.gradient_checkpointing:
        ways.append(f"gradient_checkpointing=true (a good part of {has(memory.activations)}, estimated)")
    if train.batch_size > 1:
        each = has(memory.activations // train.batch_size)
        ways.append(f"batch_size={train.batch_size - 1} (about {each}, estimated)")
    if train.base_dtype == "auto" and train.mixed_precision == "no":
        ways.append(f"mixed_precision=bf16 (about {has(memory.weights // 2)} of weights, estimated)")
    if train.base_precision == "exact" and train.offload == "none":
        ways.append("base_precision=nf4, or offload=blocks on a GPU (a good part of the weights)")
    if train.optimizer == "adamw":
        ways.append(f"optimizer=adamw-8bit (at most {has(memory.optimizer * 3 // 4)}, estimated)")
    return f"memory is nearly full or too small. What would save some: {'; '.join(ways) or 'a smaller model'}"


def _about_offload(setup: Setup) -> list[str]:
    """What keeps block offload from saving memory."""
    if setup.offload is None:
        return []
    found = []
    if setup.accelerator.device.type == "cpu":
        found.append("train.offload saves nothing without a GPU: the blocks are in main memory anyway")
    if not setup.recipe.train.gradient_checkpointing:
        found.append(
            "train.offload without gradient_checkpointing: activations stay, and with mixed precision "
            "so do copies of weights that are kept in another type"
        )
    return found


def _rates(setup: Setup) -> list[str]:
    """The learning rates, where there are several."""
    groups = setup.optimizer.param_groups
    shown = (
        f"{group['full_rate']:g} for {group['name']} ({len(group['params'])} tensors)" for group in groups
    )
    return [f"learning rates: {', '.join(shown)}"] if setup.recipe.adapter.learning_rate_pattern else []


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type).upper()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
