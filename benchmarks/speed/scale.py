"""A thousand layers: attaching, saving, loading, switching, merging; lorimer, PEFT and bare tensors.

The bare column does what cannot be left out and nothing else: it makes the tensors, reads or writes
the file, adds the products to the weights. Both programs load the same folders that PEFT wrote, and
their outputs must agree, live and merged. lorimer keeps the weights that it merges into, so as to give
them back to the bit; PEFT subtracts what it added. "Merge for good" keeps nothing.

    python -m benchmarks.speed.scale [--layers 1000] [--width 512] [--rank 16] [--rounds 5]
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lorimer
from benchmarks.speed import _measure as measure
from benchmarks.speed._works import linears
from lorimer import LoRA

T = TypeVar("T")

ACTS = ("attach", "save", "load", "load a second", "switch", "merge", "unmerge", "merge for good")


@dataclass
class Life:
    """What one program's adapters went through: seconds of each act, and outputs on the way."""

    seconds: dict[str, float] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)

    def act(self, name: str, work: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
        results: list[T] = []
        self.seconds[name] = measure.timed(lambda: results.append(work(*arguments, **options)))
        return results[0]


@dataclass(frozen=True)
class Stage:
    """What every program gets: the base (each copies it for itself), an input, two folders by PEFT, the rank
    that they have, and a folder to write to."""

    base: nn.Module
    x: Tensor
    first: Path
    second: Path
    rank: int
    scratch: Path


@torch.no_grad()
def life_in_peft(stage: Stage) -> Life:
    life = Life()
    model = copy.deepcopy(stage.base)
    fresh = life.act("attach", get_peft_model, model, peft_config(stage.rank))
    life.act("save", fresh.save_pretrained, stage.scratch / "peft")
    model = fresh.unload()
    adapted = life.act("load", PeftModel.from_pretrained, model, stage.first)
    life.act("load a second", adapted.load_adapter, stage.second, "second")
    life.act("switch", adapted.set_adapter, "second")
    life.outputs.append(adapted(stage.x))
    life.act("merge", adapted.merge_adapter)
    life.outputs.append(adapted(stage.x))
    life.act("unmerge", adapted.unmerge_adapter)
    plain = life.act("merge for good", adapted.merge_and_unload)
    life.outputs.append(plain(stage.x))
    return life


@torch.no_grad()
def life_in_lorimer(stage: Stage) -> Life:
    life = Life()
    model = copy.deepcopy(stage.base)
    fresh = life.act("attach", lorimer.attach, model, LoRA(rank=stage.rank), "all-linear")
    life.act("save", lorimer.save, fresh, stage.scratch / "lorimer")
    lorimer.detach(model)
    life.act("load", lorimer.load, model, stage.first, name="first")
    life.act("load a second", lorimer.load, model, stage.second, name="second")
    with ExitStack() as stack:
        life.act("switch", stack.enter_context, lorimer.enabled(model, "second"))
        life.outputs.append(model(stage.x))
        life.act("merge", lorimer.merge, model)
        life.outputs.append(model(stage.x))
        life.act("unmerge", lorimer.unmerge, model)
        life.act("merge for good", lorimer.merge, model, keep_original=False)
    life.outputs.append(model(stage.x))
    return life


@torch.no_grad()
def bare_life(stage: Stage) -> Life:
    """No library: the tensors, the file, the sums. There is nothing to switch."""
    life = Life()
    weights = dict(copy.deepcopy(stage.base).named_parameters())
    factors = life.act("attach", bare_factors, weights, stage.rank)
    life.act("save", save_file, factors, stage.scratch / "bare.safetensors")
    life.act("load", load_file, stage.first / "adapter_model.safetensors")
    life.act("load a second", load_file, stage.second / "adapter_model.safetensors")
    originals = life.act("merge", add_and_keep, weights, factors)
    life.act("unmerge", copy_back, weights, originals)
    life.act("merge for good", add_products, weights, factors)
    return life


def bare_factors(weights: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    factors = {}
    for name, weight in weights.items():
        rows, columns = weight.shape
        factors[f"{name}.A"] = nn.init.kaiming_uniform_(weight.new_empty(rank, columns), a=math.sqrt(5))
        factors[f"{name}.B"] = weight.new_zeros(rows, rank)
    return factors


def add_products(weights: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.addmm_(factors[f"{name}.B"], factors[f"{name}.A"])


def add_and_keep(weights: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    originals = {name: weight.clone() for name, weight in weights.items()}
    add_products(weights, factors)
    return originals


def copy_back(weights: Mapping[str, Tensor], originals: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(originals[name])


LIVES: dict[str, Callable[[Stage], Life]] = {
    "bare": bare_life,
    "peft": life_in_peft,
    "lorimer": life_in_lorimer,
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    with TemporaryDirectory() as folder:
        result = compare(options.layers, options.width, options.rank, options.rounds, Path(folder))
    print(report(result))
    print("written to", measure.write(result, options.results))


def compare(layers: int, width: int, rank: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Every act of every program, interleaved; the agreement of the last round."""
    stage = Stage(
        linears(layers, width), torch.randn(4, width), folder / "first", folder / "second", rank, folder
    )
    write_peft_folder(stage, stage.first, seed=1)
    write_peft_folder(stage, stage.second, seed=2)
    lives = measure.interleave({name: partial(life, stage) for name, life in LIVES.items()}, rounds)
    theirs, ours = lives["peft"][-1].outputs, lives["lorimer"][-1].outputs
    agreement = max(measure.largest_difference(*pair) for pair in zip(theirs, ours, strict=True))
    measure.require_agreement("a second adapter, live and merged", agreement)
    seconds = {
        act: {
            name: [life.seconds[act] for life in runs]
            for name, runs in lives.items()
            if act in runs[0].seconds
        }
        for act in ACTS
    }
    return {
        "benchmark": "scale",
        **measure.conditions(rounds),
        "layers": layers,
        "width": width,
        "rank": rank,
        "agreement": agreement,
        "seconds": {
            act: {name: measure.median(values) for name, values in programs.items()}
            for act, programs in seconds.items()
        },
        "peft_over_lorimer": {
            act: measure.ratio(programs["peft"], programs["lorimer"]) for act, programs in seconds.items()
        },
    }


def write_peft_folder(stage: Stage, folder: Path, seed: int) -> None:
    """An adapter as after some training, as PEFT saves it."""
    torch.manual_seed(seed)
    adapted = get_peft_model(measure.shared_copy(stage.base), peft_config(stage.rank))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)


def peft_config(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=r"\d+")


def report(result: Mapping[str, Any]) -> str:
    """What was measured, as a Markdown table."""
    rows = [
        [act, *(seconds.get(name, "") for name in LIVES), measure.shown(result["peft_over_lorimer"][act])]
        for act, seconds in result["seconds"].items()
    ]
    return measure.table(["", "bare, s", "PEFT, s", "lorimer, s", "PEFT / lorimer"], rows)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    described.add_argument("--layers", type=int, default=1000)
    described.add_argument("--width", type=int, default=512)
    described.add_argument("--rank", type=int, default=16)
    described.add_argument("--rounds", type=int, default=5)
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    return described


if __name__ == "__main__":
    main()
