"""A batch whose rows belong to different adapters, over the same batch with one; lorimer and PEFT.

PEFT takes such batches in evaluation only (`adapter_names=`), so both are measured there. The floor is
the frozen model. The rows of both programs must agree.

    python -m benchmarks.speed.mixed [--adapters 16] [--layers 40] [--width 512] [--tokens 64] [--rounds 25]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import lorimer
from benchmarks.speed import _measure as measure
from benchmarks.speed._works import linears

Run = Callable[[], Tensor]

PROGRAMS = ("peft", "lorimer")
SIZES = {"adapters": 16, "layers": 40, "width": 512, "tokens": 64, "rank": 16, "rounds": 25}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    with TemporaryDirectory() as folder, torch.no_grad():
        base = linears(options.layers, options.width).eval()
        x = torch.randn(options.adapters, options.tokens, options.width)
        result = compare(base, x, options.rank, options.rounds, Path(folder))
    print(report(result))
    print("written to", measure.write(result, options.results))


def compare(base: nn.Module, x: Tensor, rank: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds and ratios of every contender, x of shape (adapters, tokens, width): a row for each adapter."""
    names = [f"adapter_{number}" for number in range(len(x))]
    contenders = {"floor": partial(base, x), **peft_runs(base, x, names, rank, folder)}
    contenders |= lorimer_runs(base, x, names, folder)
    agreement = {
        kind: measure.largest_difference(contenders[f"peft {kind}"](), contenders[f"lorimer {kind}"]())
        for kind in ("one", "mixed")
        if f"lorimer {kind}" in contenders
    }
    for kind, difference in agreement.items():
        measure.require_agreement(kind, difference)
    seconds = measure.interleave(
        {name: partial(measure.timed, run) for name, run in contenders.items()}, rounds
    )
    return {
        "benchmark": "mixed",
        **measure.conditions(rounds),
        "adapters": len(x),
        "layers": len(list(base.children())),
        "shape": list(x.shape),
        "rank": rank,
        "agreement": agreement,
        "seconds": {name: measure.median(values) for name, values in seconds.items()},
        "mixed_over_one": {
            program: measure.ratio(seconds[f"{program} mixed"], seconds[f"{program} one"])
            for program in PROGRAMS
            if f"{program} mixed" in seconds
        },
        "one_over_floor": {
            program: measure.ratio(seconds[f"{program} one"], seconds["floor"]) for program in PROGRAMS
        },
    }


def peft_runs(base: nn.Module, x: Tensor, names: Sequence[str], rank: int, folder: Path) -> dict[str, Run]:
    """PEFT's runs; its adapters, with factors as after some training, also stand in `folder` afterwards."""
    torch.manual_seed(1)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=r"\d+")
    model = get_peft_model(measure.shared_copy(base), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    model.eval().save_pretrained(folder)
    return {"peft one": partial(model, x), "peft mixed": partial(model, x, adapter_names=list(names))}


def lorimer_runs(base: nn.Module, x: Tensor, names: Sequence[str], folder: Path) -> dict[str, Run]:
    """lorimer's runs, with the adapters that PEFT saved."""
    model: nn.Module = measure.shared_copy(base)
    for name in names:
        lorimer.load(model, folder / name, name=name)

    def one() -> Tensor:
        with lorimer.enabled(model, names[0]):
            return model(x)

    def mixed() -> Tensor:
        with lorimer.rows(model, list(names)):
            return model(x)

    return {"lorimer one": one, "lorimer mixed": mixed}


def report(result: Mapping[str, Any]) -> str:
    """What was measured, as a Markdown table."""
    rows = [
        [
            program,
            *(result["seconds"].get(f"{program} {kind}", "") for kind in ("one", "mixed")),
            *(measure.shown(result[ratio].get(program)) for ratio in ("mixed_over_one", "one_over_floor")),
        ]
        for program in PROGRAMS
    ]
    return measure.table(["", "one, s", "mixed, s", "mixed / one", "one / floor"], rows)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in SIZES.items():
        described.add_argument(f"--{name}", type=int, default=default)
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    return described


if __name__ == "__main__":
    main()
