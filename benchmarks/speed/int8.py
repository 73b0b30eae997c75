"""One LoRA step on a base in int8, against the exact base and the floor, interleaved in one process.

The floor is the frozen model's own forward and its backward down to the input, in float32. A second part
tells where its time goes: products of Linears, convolutions, the rest.

    python -m benchmarks.speed.int8 llama [--layers 10] [--rounds 9]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import lorimer
from benchmarks.speed import _measure as measure
from benchmarks.speed._works import WORKS, Work
from lorimer import LoRA
from lorimer.layers.int8_base import set_base_precision

FLOOR = "floor"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    work = WORKS[options.work](**({"layers": options.layers} if options.layers else {}))
    result = compare(work, options.rounds)
    print(report(result))
    print("share of the floor's time:", result["floor_shares"])
    print("written to", measure.write(result, options.results))


def compare(work: Work, rounds: int) -> dict[str, Any]:
    models = {FLOOR: work.model, **contenders(work)}
    losses = {name: loss_of(work, model).item() for name, model in models.items()}
    seconds = measure.interleave(
        {name: partial(measure.timed, partial(step, work, model)) for name, model in models.items()}, rounds
    )
    return {
        "benchmark": f"int8-{work.name}",
        **measure.conditions(rounds),
        "contenders": {
            name: {
                "seconds": measure.median(seconds[name]),
                "over_floor": measure.ratio(seconds[name], seconds[FLOOR]),
                "loss": losses[name],
            }
            for name in models
        },
        "floor_shares": shares(work),
    }


def contenders(work: Work) -> dict[str, nn.Module]:
    """The model with LoRA on the exact base and on the int8 base, and the int8 base alone."""
    made = {}
    for name in ("lora", "int8 floor", "int8 lora"):
        model = measure.shared_copy(work.model)
        if "lora" in name:
            torch.manual_seed(1)
            lorimer.attach(model, LoRA(rank=work.rank), work.targets)
        if "int8" in name:
            set_base_precision(model, "int8")
        made[name] = model
    return made


def shares(work: Work) -> dict[str, float]:
    """What part of the floor's time is spent in which kind of product."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step(work, work.model)
    kinds: Counter[str] = Counter()
    for event in recorded.key_averages():
        kinds[kind_of(event.key)] += event.self_cpu_time_total
    return {kind: round(time / kinds.total(), 3) for kind, time in kinds.most_common()}


def kind_of(operation: str) -> str:
    if "conv" in operation:
        return "convolutions"
    if operation in ("aten::addmm", "aten::mm"):
        return "linear layers"
    return "attention" if "attention" in operation or operation == "aten::bmm" else "the rest"


def loss_of(work: Work, model: nn.Module) -> Tensor:
    """The loss; where nothing is trained, the input asks for a gradient."""
    trains = any(parameter.requires_grad for parameter in model.parameters())
    return work.loss(model, work.input.detach().requires_grad_(not trains))


def step(work: Work, model: nn.Module) -> None:
    loss_of(work, model).backward()
    model.zero_grad(set_to_none=True)


def report(result: Mapping[str, Any]) -> str:
    """What was measured, as a Markdown table."""
    rows = [
        [name, figures["seconds"], measure.shown(figures["over_floor"]), f"{figures['loss']:.4f}"]
        for name, figures in result["contenders"].items()
    ]
    return measure.table(["", "s", "over the floor", "loss"], rows)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    described.add_argument("work", choices=WORKS)
    described.add_argument("--layers", type=int, help="of the Llama; 10 by default")
    described.add_argument("--rounds", type=int, default=9)
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    return described


if __name__ == "__main__":
    main()
