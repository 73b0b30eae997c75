"""The Triton kernels in Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lorimer.kernels import plan

RUNS = Path(__file__).with_name("triton_runs.py")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: it exists for Linux alone"
)


def run(**environment: str) -> None:
    """Run the cases in a process that decides anew between interpreting and compiling."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", str(RUNS)]
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "TRITON_"))
    }
    done = subprocess.run(
        command, env={**inherited, **environment}, cwd=Path.cwd(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
def test_in_the_interpreter():
    run(TRITON_INTERPRET="1")


def compiled(kernel: Any, pointer: str, capability: int, **constants: int | str) -> Any:
    """A kernel as GPUs of that capability get it, from wide matrices of type `pointer`; needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {"wide": pointer, "thin": pointer, "factor": pointer, "parts": "*fp32", "seed": "*i64"}
    types |= {"gain": "fp32", **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    fixed = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", capability, 32))


@needs_triton
@pytest.mark.parametrize(("pointer", "dtype"), [("*bf16", torch.bfloat16), ("*fp32", torch.float32)])
@pytest.mark.parametrize("name", ["_narrow", "_widen", "_correlate"])
def test_kernels_compile_for_gpus_and_fit_into_them(name, pointer, dtype, tmp_path, monkeypatch):
    from lorimer.kernels import triton_products

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    widest = torch.empty(plan.MOST_FUSED_RANK[dtype], 1)
    constants = {**triton_products._shape_of_tiles(widest), "PRECISION": "tf32", "ADDS": True}
    kernel = compiled(getattr(triton_products, name), pointer, 80, **constants)
    assert "mma" in kernel.asm["ptx"]  # on tensor cores
    assert kernel.metadata.shared <= 99 * 1024


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu():
    run()


@pytest.mark.parametrize(
    ("device", "dtype", "rank", "fused"),
    [
        ("cuda", torch.bfloat16, 128, True),
        ("cuda", torch.float16, 129, False),
        ("cuda", torch.float32, 16, False),
        ("cuda", torch.float64, 16, False),
        ("cpu", torch.bfloat16, 16, False),
    ],
)
def test_where_the_kernels_are_chosen(device, dtype, rank, fused, monkeypatch):
    monkeypatch.setattr(plan, "_compiles", lambda device: True)
    assert plan.fuses_dropout(torch.device(device), dtype, rank) is fused


def test_float32_is_fused_where_torch_may_round_its_factors(monkeypatch):
    monkeypatch.setattr(plan, "_compiles", lambda device: True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert plan.fuses_dropout(torch.device("cuda"), torch.float32, 64)
    finally:
        torch.set_float32_matmul_precision(before)


def test_triton_is_left_alone_where_it_is_not_used():
    """Neither `import lorimer` nor a layer with dropout on the CPU needs it."""
    program = (
        "import sys, torch, lorimer\n"
        "sys.modules['triton'] = None\n"  # from here on its import fails
        "from lorimer.kernels.low_rank import adapted_linear\n"
        "x, W, A, B = torch.ones(2, 3), torch.ones(4, 3), torch.ones(1, 3), torch.ones(4, 1)\n"
        "adapted_linear(x, W, None, A, B.requires_grad_(), 1.0, 0.5).sum().backward()\n"
        "assert 'lorimer.kernels.triton_products' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
