"""PyTorch's fused attention on a CPU against plain products, forward and backward, by the length of texts.

    python -m benchmarks.speed.attention

Sixteen texts in twelve heads of 32 channels, as MiniLM has them, with a mask.
What comes out is what `lorimer.kernels.attention` goes by.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.speed import _measure as measure

LENGTHS = (16, 32, 64, 128, 256, 512)
KERNELS = {"fused": SDPBackend.FLASH_ATTENTION, "products": SDPBackend.MATH}


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float32):
        for length in LENGTHS:
            work = {name: partial(once, kernel, length, dtype) for name, kernel in KERNELS.items()}
            times = measure.interleave(work, asked.rounds)
            found[f"{str(dtype).removeprefix('torch.')}, {length}"] = {
                "ms": {name: round(1e3 * measure.median(of), 2) for name, of in times.items()},
                "products_over_fused": measure.ratio(times["products"], times["fused"]),
            }
    result = {"benchmark": "attention", **measure.conditions(asked.rounds), "lengths": found}
    print(report(result))
    print("written to", measure.write(result, asked.results))


def once(kernel: SDPBackend, length: int, dtype: torch.dtype) -> float:
    """Seconds of one forward and backward pass."""
    made = [torch.randn(16, length, 12, 32, dtype=dtype).transpose(1, 2) for _ in range(3)]
    query, key, value = (each.requires_grad_() for each in made)
    mask = torch.zeros(16, 1, length, length, dtype=dtype)
    begin = time.perf_counter()
    with sdpa_kernel([kernel]):
        output: Tensor = scaled_dot_product_attention(query, key, value, mask)
    output.sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - begin


def report(result: dict[str, Any]) -> str:
    """What was measured, as a Markdown table."""
    rows = [
        [name, found["ms"]["fused"], found["ms"]["products"], measure.shown(found["products_over_fused"])]
        for name, found in result["lengths"].items()
    ]
    return measure.table(["tokens", "fused, ms", "products, ms", "products over fused"], rows)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    described.add_argument("--rounds", type=int, default=15)
    described.add_argument("--results", type=Path, default=measure.RESULTS)
    return described


if __name__ == "__main__":
    main()
