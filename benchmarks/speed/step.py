"""One LoRA training step against PEFT's and against the floor, interleaved in one process.

The floor is the frozen model's own forward and its backward down to the input: no adapter can be
cheaper. Each round times every contender once, in turn, so that the machine's drift hits all alike;
what is quoted is the median over rounds of the ratio within a round.

    python -m benchmarks.speed.step [--rounds 15] [--batch 4] [--rank 8] [--device cpu]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import lorimer
from lorimer import LoRA

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "ff.net.0.proj", "ff.net.2"]


def unet() -> nn.Module:
    """A U-Net of Stable Diffusion's architecture at an eighth of its width."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=128,
        attention_head_dim=8,
    )


def contenders(rank: int, device: str) -> dict[str, nn.Module]:
    base = unet().to(device)
    peer = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, lora_dropout=0.0)
    )
    ours = copy.deepcopy(base)
    lorimer.attach(ours, LoRA(rank=rank), TARGETS)
    return {"floor": base.requires_grad_(False), "peft": peer, "lorimer": ours}


def step(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """Seconds of one forward and backward."""
    synchronise(batch["sample"].device)
    start = time.perf_counter()
    model(**batch).sample.square().mean().backward()
    synchronise(batch["sample"].device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def batch_of(size: int, device: str) -> Callable[[], dict[str, Tensor]]:
    torch.manual_seed(1)
    sample = torch.randn(size, 4, 32, 32, device=device, requires_grad=True)
    timestep = torch.randint(0, 1000, (size,), device=device)
    text = torch.randn(size, 16, 128, device=device)
    return lambda: {
        "sample": sample.detach().requires_grad_(),
        "timestep": timestep,
        "encoder_hidden_states": text,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/step.json"))
    options = parser.parse_args()
    models, batch = contenders(options.rank, options.device), batch_of(options.batch, options.device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(options.rounds + 1):
        for name, model in models.items():
            taken = step(model, batch())
            model.zero_grad(set_to_none=True)
            if round_number:  # the first round warms up
                seconds[name].append(taken)
    ratios = {
        f"{left} / {right}": statistics.median(
            a / b for a, b in zip(seconds[left], seconds[right], strict=True)
        )
        for left, right in [("lorimer", "floor"), ("peft", "floor"), ("lorimer", "peft")]
    }
    result = {
        "benchmark": "step",
        "hardware": torch.cuda.get_device_name()
        if options.device == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "batch": options.batch,
        "rank": options.rank,
        "median_seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "median_ratio": {name: round(value, 3) for name, value in ratios.items()},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
