"""One training step: lorimer against PEFT and against the floor, interleaved in one process.

The floor is the frozen model's forward and its backward down to its input: what a step costs before
anything learns. The adapted models get the same input without asking for its gradient, as in training.
All share one set of frozen weights; lorimer gets PEFT's factors, and both must then agree.

    python -m benchmarks.speed.step llama --layers 10
    python -m benchmarks.speed.step unet --variants lora --rounds 5 --figures seconds saved_bytes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

import lorimer
from benchmarks.speed import _measure as measure
from benchmarks.speed._works import WORKS, Work
from lorimer import LoRA, registry
from lorimer.adapters._base import Method

FLOOR = "floor"
FIGURES = ("seconds", "flops", "saved_bytes", "peak_bytes")


@dataclass(frozen=True)
class Variant:
    """One kind of adapter, as lorimer (rank -> method) and as PEFT (arguments of LoraConfig) call it."""

    method: Callable[[int], Method]
    peft: Mapping[str, Any]


VARIANTS = {
    "lora": Variant(lambda rank: LoRA(rank=rank), {}),
    "dropout": Variant(lambda rank: LoRA(rank=rank, dropout=0.1), {"lora_dropout": 0.1}),
    "dora": Variant(lambda rank: registry.get("method", "dora")(rank=rank), {"use_dora": True}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    with torch.device(options.device):
        work = WORKS[options.work](**({"layers": options.layers} if options.layers else {}))
        if options.peak_of:
            model = contender(work, options.peak_of)
            print(measure.count_peak_bytes(partial(step, work, model)))
            return
        result = compare(work, options.variants, set(options.figures), options.rounds)
    if "peak_bytes" in options.figures:
        for name, figures in result["contenders"].items():
            figures["peak_bytes"] = peak_in_own_process(name, options)
    print(report(result))
    print("written to", measure.write(result, options.results))


def compare(work: Work, variants: Sequence[str], figures: set[str], rounds: int) -> dict[str, Any]:
    """Every figure but the peak, which wants a process for each contender."""
    names = [FLOOR, *(f"{program} {variant}" for variant in variants for program in ("peft", "lorimer"))]
    models = {name: contender(work, name) for name in names}
    agreement = {variant: agree(work, variant, models) for variant in variants}
    measured: dict[str, dict[str, Any]] = {name: {} for name in models}
    over_peft: dict[str, Any] = {}
    for name, model in models.items():
        if "flops" in figures:
            measured[name]["flops"] = measure.count_flops(partial(step, work, model))
        if "saved_bytes" in figures:
            measured[name]["saved_bytes"] = measure.count_saved_bytes(model, partial(loss_of, work, model))
    if "seconds" in figures:
        runs = {name: partial(measure.timed, partial(step, work, model)) for name, model in models.items()}
        seconds = measure.interleave(runs, rounds)
        for name in models:
            measured[name]["seconds"] = measure.median(seconds[name])
            measured[name]["over_floor"] = measure.ratio(seconds[name], seconds[FLOOR])
        for variant in variants:
            over_peft[variant] = measure.ratio(seconds[f"lorimer {variant}"], seconds[f"peft {variant}"])
    return {
        "benchmark": f"step-{work.name}",
        **measure.conditions(rounds),
        "rank": work.rank,
        "float32_products": torch.get_float32_matmul_precision(),
        "agreement": agreement,
        "contenders": measured,
        "lorimer_over_peft": over_peft,
    }


def contender(work: Work, name: str) -> nn.Module:
    """The floor, or "peft VARIANT" or "lorimer VARIANT" with the same factors; on shared frozen weights."""
    if name == FLOOR:
        return work.model
    program, variant = name.split()
    peer = with_peft(work, VARIANTS[variant])
    return peer if program == "peft" else with_lorimer(work, VARIANTS[variant].method(work.rank), peer)


def with_peft(work: Work, variant: Variant) -> nn.Module:
    """PEFT's adapter with factors as after some training, the same ones each time: B is not zero."""
    config = LoraConfig(
        r=work.rank, lora_alpha=work.rank, target_modules=work.peft_targets, **dict(variant.peft)
    )
    torch.manual_seed(1)
    peer = get_peft_model(measure.shared_copy(work.model), config)
    for name, parameter in peer.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return peer


def with_lorimer(work: Work, method: Method, peer: nn.Module) -> nn.Module:
    """lorimer's adapter with PEFT's numbers; the layers must be the same ones.

    Raises:
        SystemExit: they are not.
    """
    model: nn.Module = measure.shared_copy(work.model)
    theirs = {
        key.removeprefix("base_model.model."): tensor
        for key, tensor in get_peft_model_state_dict(peer, save_embedding_layers=False).items()
    }
    ours = {
        f"{path}.{layer.method.tensors[name]['peft']}": parameter
        for path, layer in lorimer.attach(model, method, work.targets).layers.items()
        for name, parameter in layer.named_parameters()
    }
    if theirs.keys() != ours.keys():
        raise SystemExit(f"lorimer and PEFT adapt different tensors, e.g. {min(theirs.keys() ^ ours.keys())}")
    for key, parameter in ours.items():
        parameter.data.copy_(theirs[key].view_as(parameter))
    return model


def loss_of(work: Work, model: nn.Module) -> Tensor:
    return work.loss(model, work.input.detach().requires_grad_(model is work.model))


def step(work: Work, model: nn.Module) -> None:
    """Forward and backward; the gradients are dropped, for everyone alike."""
    loss_of(work, model).backward()
    model.zero_grad(set_to_none=True)


def agree(work: Work, variant: str, models: Mapping[str, nn.Module]) -> float:
    """How far lorimer's and PEFT's gradient of the input, which has passed through every layer forward and
    backward, lie apart without dropout."""
    theirs, ours = (
        exact_input_gradient(work, models[f"{program} {variant}"]) for program in ("peft", "lorimer")
    )
    difference = measure.largest_difference(theirs, ours)
    measure.require_agreement(variant, difference)
    return difference


def exact_input_gradient(work: Work, model: nn.Module) -> Tensor:
    """In float64, as in float32 rounding alone switches some ReLUs of a deep network on or off, with a whole
    gradient behind each. The model is left to the bit as it was: float32 fits into float64."""
    x = work.input.double().detach().requires_grad_()
    work.loss(model.double().eval(), x).backward()
    model.float().train().zero_grad(set_to_none=True)
    assert x.grad is not None
    return x.grad


def peak_in_own_process(name: str, options: argparse.Namespace) -> int:
    """Peak memory of one contender's step, measured by this same script in a fresh process."""
    layers = ["--layers", str(options.layers)] if options.layers else []
    command = [sys.executable, "-m", "benchmarks.speed.step", options.work, *layers]
    command += ["--tf32"] if options.tf32 else []
    command += ["--device", options.device, "--variants", *options.variants, "--peak-of", name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed tensors go back to the system
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def report(result: Mapping[str, Any]) -> str:
    """What was measured, as a Markdown table."""
    header = ["", "s", "over the floor", "over PEFT", "GFLOP", "MB saved", "MB peak"]
    rows = []
    for name, figures in result["contenders"].items():
        ratios = [figures.get("over_floor"), result["lorimer_over_peft"].get(name.removeprefix("lorimer "))]
        large = [
            f"{figures[key] / unit:.0f}" if key in figures else ""
            for key, unit in [("flops", 1e9), ("saved_bytes", 1e6), ("peak_bytes", 1e6)]
        ]
        rows.append([name, figures.get("seconds", ""), *map(measure.shown, ratios), *large])
    return measure.table(header, rows)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    described.add_argument("work", choices=WORKS)
    described.add_argument("--layers", type=int, help="of the Llama; 10 by default")
    described.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    described.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    described.add_argument("--rounds", type=int, default=9)
    described.add_argument("--device", default="cpu")
    described.add_argument("--tf32", action="store_true", help="on a GPU; lets Triton's kernels take dropout")
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    described.add_argument("--peak-of", help=argparse.SUPPRESS)  # what the process of one contender is told
    return described


if __name__ == "__main__":
    main()
