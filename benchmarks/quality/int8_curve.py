"""Does a base in int8 teach an adapter as well as the exact one? Loss curves of a real run, side by side.

A small Llama learns bytes of Python's standard library in full; LoRA then adapts it to the prose of Python's
documentation (`pydoc_data.topics`) on the exact base, on the int8 base, and, to tell what difference is none,
on the exact base from another seed of the adapter. The batches are the same for all.

    python -m benchmarks.quality.int8_curve [--steps 300]
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lorimer
from benchmarks.speed import _measure as measure
from lorimer import LoRA
from lorimer.layers.int8_base import set_base_precision

BATCH, LENGTH = 8, 128  # sequences, bytes
RUNS = {"exact": ("exact", 1), "int8": ("int8", 1), "exact, another seed": ("exact", 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    code, prose = source_text(), as_bytes(prose_text())
    held_out = prose[-32 * LENGTH :]
    base = pretrained(as_bytes(code), options.base_steps)
    start = loss_on(base, held_out)
    runs = {
        name: adapted(base, precision, seed, prose[: -len(held_out)], held_out, options.steps)
        for name, (precision, seed) in RUNS.items()
    }
    result = {
        "benchmark": "int8_curve",
        **measure.conditions(1),
        "base_held_out": start,
        "runs": runs,
        "mean_difference": {
            name: statistics.fmean(
                abs(a - b) for a, b in zip(run["losses"], runs["exact"]["losses"], strict=True)
            )
            for name, run in runs.items()
            if name != "exact"
        },
    }
    print(report(result))
    print("written to", measure.write(result, options.results))


def adapted(
    base: nn.Module, precision: str, seed: int, text: Tensor, held_out: Tensor, steps: int
) -> dict[str, Any]:
    """Losses of each step, and on text that was not trained on, beside the base as trained and exact."""
    model = copy.deepcopy(base)
    torch.manual_seed(seed)
    adapter = lorimer.attach(model, LoRA(rank=8), "all-linear")
    set_base_precision(model, precision)
    losses = trained(model, list(adapter.parameters()), text, steps, learning_rate=2e-3)
    live = loss_on(model, held_out)
    set_base_precision(model, "exact")
    return {"losses": losses, "held_out": live, "held_out_on_exact_base": loss_on(model, held_out)}


def pretrained(text: Tensor, steps: int) -> nn.Module:
    """A Llama of three layers that has learnt `text` in full."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    trained(model, list(model.parameters()), text, steps, learning_rate=2e-3)
    return model


def trained(
    model: nn.Module, parameters: list[nn.Parameter], text: Tensor, steps: int, learning_rate: float
) -> list[float]:
    """The loss of each step on windows of `text`, drawn alike in every run."""
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=draw)
        window = torch.stack([text[start : start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=window, labels=window).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(round(loss.item(), 5))
    return losses


@torch.no_grad()
def loss_on(model: nn.Module, text: Tensor) -> float:
    windows = text.view(-1, LENGTH)
    return round(model(input_ids=windows, labels=windows).loss.item(), 5)


def source_text() -> str:
    """Some of the standard library's own code."""
    modules = [argparse, copy, inspect, json, statistics]
    return "\n".join(inspect.getsource(module) for module in modules)


def prose_text() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()))


def report(result: dict[str, Any]) -> str:
    """What became of each run, as a Markdown table."""
    rows = []
    for name, run in result["runs"].items():
        last = statistics.fmean(run["losses"][-20:])
        apart = result["mean_difference"].get(name)
        rows.append(
            [
                name,
                f"{run['losses'][0]:.3f}",
                f"{last:.4f}",
                "" if apart is None else f"{apart:.4f}",
                run["held_out"],
                run["held_out_on_exact_base"],
            ]
        )
    header = ["base", "first loss", "last 20", "mean |difference|", "held out", "held out, exact base"]
    return measure.table(header, rows)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    described.add_argument("--steps", type=int, default=300)
    described.add_argument("--base-steps", type=int, default=400)
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    return described


if __name__ == "__main__":
    main(sys.argv[1:])
