"""The Triton kernels against the plain formulas. `test_triton.py` runs this file in a process of its own:
whether Triton compiles or interprets is settled when the kernels are imported.

Interpreted, the tensors lie on the CPU; else on the GPU.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lorimer.kernels import low_rank
from lorimer.kernels.dora import dora_linear
from lorimer.kernels.low_rank import adapted_linear, add_low_rank
from lorimer.kernels.plan import MOST_FUSED_RANK
from lorimer.kernels.triton_map import DroppingLinear
from lorimer.kernels.triton_products import correlate, narrow, widen
from tests.tolerances import SAME_OUTPUT, relative_difference
from tests.unit.kernels.measures import assert_same, leaves

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
P, SCALE = 0.3, 0.7

# Tokens, features, rank: single entries, less and more than a tile of 64 x 64 x 16, sums in two pieces.
SIZES = [(1, 1, 1), (3, 5, 2), (70, 64, 16), (64, 300, 17), (300, 70, 4), (5, 96, 128)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = [(*size, dtype) for size in SIZES for dtype in DTYPES if size[2] <= MOST_FUSED_RANK[dtype]]


@pytest.fixture(autouse=True)
def _on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are chosen on the interpreter's device as they are on a GPU."""
    torch.manual_seed(0)
    chosen = lambda device, dtype, rank: dtype != torch.float64  # noqa: E731
    monkeypatch.setattr(low_rank, "fuses_dropout", chosen)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def seed_of(number: int) -> Tensor:
    return torch.tensor(number, device=DEVICE)


def mask_of(tokens: int, features: int, p: float, seed: Tensor) -> Tensor:
    """0 or 1 / (1 - p), read off what becomes of ones."""
    ones = torch.ones(tokens, 1, device=DEVICE), torch.ones(1, features, device=DEVICE)
    return widen(*ones, p, seed)


@pytest.mark.parametrize(("tokens", "features", "rank", "dtype"), CASES)
def test_products_are_the_formulas_under_one_mask(tokens, features, rank, dtype):
    wide, thin, factor = (
        draw(*shape, dtype=dtype) for shape in [(tokens, features), (tokens, rank), (rank, features)]
    )
    seed, onto = seed_of(2**62 - 7), wide.clone()
    mask = mask_of(tokens, features, P, seed).double()
    x, h, a = wide.double(), thin.double(), factor.double()
    results = [
        (narrow(wide, factor, P, seed), (x * mask) @ a.T),
        (widen(thin, factor, P, seed), (h @ a) * mask),
        (widen(thin, factor, P, seed, onto), x + (h @ a) * mask),
        (correlate(thin, wide, P, seed), h.T @ (x * mask)),
    ]
    for ours, truth in results:
        assert ours.dtype == dtype and ours.shape == truth.shape
        assert relative_difference(ours, truth) <= SAME_OUTPUT[dtype]
    assert results[2][0] is onto


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_masks_are_fair(p):
    """Five standard deviations of a mean over independent draws."""
    mask = mask_of(500, 300, p, seed_of(4))
    kept = mask > 0
    assert torch.allclose(mask[kept], torch.tensor(1 / (1 - p), device=DEVICE))
    variance = p * (1 - p)
    assert abs(1 - kept.double().mean() - p) < 5 * (variance / kept.numel()) ** 0.5
    assert (1 - kept.double().mean(0) - p).abs().max() < 5 * (variance / 500) ** 0.5
    assert (1 - kept.double().mean(1) - p).abs().max() < 5 * (variance / 300) ** 0.5


def test_features_tokens_and_seeds_are_dropped_independently():
    """No two columns, no two rows and no two masks go together more than chance has it."""
    one, other = (mask_of(256, 300, P, seed_of(number)) > 0 for number in (1, 2))
    for matrix in (one, one.T, torch.cat([one, other]), torch.cat([one.T, other.T])):
        together = torch.corrcoef(matrix.double()).fill_diagonal_(0)
        assert together.abs().max() < 6.5 / matrix.shape[1] ** 0.5


def test_extremes_and_entries_that_are_no_numbers():
    x, A = draw(4, 6), draw(2, 6)
    assert (narrow(x, A, 1.0, seed_of(1)) == 0).all()
    assert relative_difference(narrow(x, A, 0.0, seed_of(1)), x @ A.T) <= SAME_OUTPUT[torch.float32]
    mask = mask_of(4, 6, 0.5, seed_of(1))
    x[mask == 0] = torch.inf  # what is dropped is not looked at
    assert narrow(x, A, 0.5, seed_of(1)).isfinite().all()


def inputs(*lead: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x (*lead, 6), W (5, 6), b, A, B of rank 2."""
    return [draw(*shape, dtype=dtype) for shape in [(*lead, 6), (5, 6), (5,), (2, 6), (5, 2)]]


def next_mask(x: Tensor) -> Tensor:
    """The mask that a layer draws at its next call."""
    drop = DroppingLinear.drawn(P, x.device)
    return mask_of(x[..., 0].numel(), x.shape[-1], P, drop.seed).view(x.shape).to(x.dtype)


def whole(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
    torch.manual_seed(5)
    return adapted_linear(x, W, b, A, B, SCALE, P)


def added(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
    torch.manual_seed(5)
    return add_low_rank(F.linear(x, W, b), x, A, B, SCALE, P)


def truth(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
    torch.manual_seed(5)
    return F.linear(x, W, b) + SCALE * (x * next_mask(x)) @ A.T @ B.T


both = pytest.mark.parametrize("ours", [whole, added])


@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 3), (64,)])
def test_layers_and_all_gradients(ours, lead, dtype):
    assert_same(ours, truth, inputs(*lead, dtype=dtype))


@both
@pytest.mark.parametrize("view", [lambda x: x.transpose(0, 1), lambda x: x[:1].expand(4, 7, 6)])
def test_layers_of_views(ours, view):
    x, *rest = inputs(4, 7)
    assert_same(lambda x, *rest: ours(view(x), *rest), lambda x, *rest: truth(view(x), *rest), [x, *rest])


@both
def test_inputs_that_autograd_keeps_as_products(ours):
    """RMSNorm's scales per token and per feature meet the thin side, under the same mask."""
    x, *rest = inputs(3, 4)
    scaled = lambda x: x * x.square().mean(-1, keepdim=True).rsqrt() * torch.ones_like(x[0, 0])  # noqa: E731
    assert_same(lambda x, *rest: ours(scaled(x), *rest), lambda x, *rest: truth(scaled(x), *rest), [x, *rest])


def test_dora():
    x, W, b, A, B = inputs(9)
    m = draw(5)

    def ours(x: Tensor, A: Tensor, B: Tensor, m: Tensor) -> Tensor:
        torch.manual_seed(5)
        return dora_linear(x, W, b, A, B, m, SCALE, P)

    def by_hand(x: Tensor, A: Tensor, B: Tensor, m: Tensor) -> Tensor:
        torch.manual_seed(5)
        gain = m / (W + SCALE * B @ A).norm(dim=1).detach()
        return (F.linear(x, W) + SCALE * (x * next_mask(x)) @ A.T @ B.T) * gain + b

    assert_same(ours, by_hand, [x, A, B, m])


@both
def test_autocast(ours):
    tensors = leaves(inputs(9))
    with torch.autocast(DEVICE, torch.bfloat16):
        y = ours(*tensors)
    assert y.dtype == torch.bfloat16
    gradients, exact = (torch.autograd.grad(z.float().sum(), tensors) for z in (y, truth(*tensors)))
    for left, right in zip(gradients, exact, strict=True):
        assert left.dtype == torch.float32
        assert relative_difference(left, right) <= SAME_OUTPUT[torch.bfloat16]


def test_gradient_checkpointing_draws_the_same_mask_again():
    tensors = leaves(inputs(8))
    block = lambda *tensors: adapted_linear(*tensors, SCALE, P).sin()  # noqa: E731
    torch.manual_seed(2)
    expected = torch.autograd.grad(block(*tensors).sum(), tensors)
    torch.manual_seed(2)
    checkpoint(block, *tensors, use_reentrant=False).sum().backward()
    assert all(torch.equal(tensor.grad, right) for tensor, right in zip(tensors, expected, strict=True))


def test_two_calls_differ_and_the_same_seed_of_torch_gives_the_same_training():
    tensors = inputs(8)
    torch.manual_seed(1)
    first, second = (adapted_linear(*tensors, SCALE, P) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(adapted_linear(*tensors, SCALE, P), first) and not torch.equal(first, second)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs are captured on a GPU")
def test_each_replay_of_a_cuda_graph_draws_another_mask():
    tensors = inputs(8)
    adapted_linear(*tensors, SCALE, P)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = adapted_linear(*tensors, SCALE, P)
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not torch.equal(first, y)
