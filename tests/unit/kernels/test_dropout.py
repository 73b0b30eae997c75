"""Dropout draws the same mask twice from one number, and its masks are fair."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lorimer.kernels.dropout import draw_seed, dropout_mask
from lorimer.kernels.low_rank import adapted_conv, adapted_linear, add_low_rank
from tests.unit.kernels import formulas
from tests.unit.kernels.formulas import CONVOLUTIONS
from tests.unit.kernels.measures import SavedBytes, assert_same, leaves

P = 0.3


def tensors(*lead: int) -> list[Tensor]:
    shapes = [(*lead, 6), (5, 6), (5,), (2, 6), (5, 2)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def whole(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
    torch.manual_seed(5)
    return adapted_linear(x, W, b, A, B, 0.7, P)


def added(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
    torch.manual_seed(5)
    return add_low_rank(F.linear(x, W, b), x, A, B, 0.7, P)


def truth(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
    torch.manual_seed(5)
    dropped = x * dropout_mask(x.detach(), 6, P, draw_seed())
    return F.linear(x, W, b) + 0.7 * dropped @ A.T @ B.T


both = pytest.mark.parametrize("ours", [whole, added])


@both
@pytest.mark.parametrize("lead", [(), (3,), (64,), (2, 4), (0,)])
def test_forward_and_backward_see_one_mask(ours, lead):
    assert_same(ours, truth, tensors(*lead))


@both
def test_finite_differences(ours):
    assert torch.autograd.gradcheck(ours, leaves(tensors(4)))


def test_convolution_drops_entries_of_its_input():
    case = CONVOLUTIONS[1]

    def ours(*inputs: Tensor) -> Tensor:
        torch.manual_seed(5)
        return adapted_conv(*inputs, 0.7, case.how, P)

    def by_hand(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
        torch.manual_seed(5)
        dropped = x * dropout_mask(x.detach(), x.shape[2:].numel(), P, draw_seed())
        hidden = formulas.convolve(dropped, A, None, case.how)
        return formulas.convolve(x, W, b, case.how) + 0.7 * F.conv2d(hidden, B)

    assert_same(ours, by_hand, [case.tensors()[name] for name in "xWbAB"])


def test_the_same_seed_of_torch_gives_the_same_training_and_two_calls_differ():
    inputs = tensors(8)
    torch.manual_seed(1)
    first, second = (adapted_linear(*inputs, 0.7, P) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(adapted_linear(*inputs, 0.7, P), first) and not torch.equal(first, second)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_draws_the_same_mask_again(reentrant):
    inputs = leaves(tensors(8))
    block = lambda *inputs: adapted_linear(*inputs, 0.7, P).sin()  # noqa: E731
    torch.manual_seed(2)
    expected = torch.autograd.grad(block(*inputs).sum(), inputs)
    torch.manual_seed(2)
    checkpoint(block, *inputs, use_reentrant=reentrant).sum().backward()
    assert all(torch.equal(tensor.grad, right) for tensor, right in zip(inputs, expected, strict=True))


def test_no_mask_is_kept():
    x, W, b, A, B = tensors(50)
    for tensor in (x, A, B):
        tensor.requires_grad_()
    counter = SavedBytes([W, b, A, B])
    with counter.counted():
        adapted_linear(x, W, b, A, B, 0.7, P)
    assert counter.total() == 8 * 50 * 6


@pytest.mark.parametrize("width", [6, 255, 256, 1000])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_masks_are_fair(width, p):
    """Entries are dropped with probability p, alike in every column and row, and count 1 / (1 - p) else."""
    x = torch.empty(2000, width)
    mask = dropout_mask(x, width, p, seed=4)
    kept = mask > 0
    assert torch.equal(mask[kept].unique(), torch.tensor([1 / (1 - p)]))
    # Five standard deviations of a mean over independent draws, of which there is one per sixteen entries.
    draws = x.numel() / (16 if width >= 256 else 1)
    assert abs(1 - kept.double().mean() - p) < 5 * (p * (1 - p) / draws) ** 0.5
    assert (1 - kept.double().mean(0) - p).abs().max() < 5.5 * (p * (1 - p) / 2000) ** 0.5
    assert (1 - kept.double().mean(1) - p).abs().max() < 5.5 * (p * (1 - p) / width) ** 0.5 + 1 / width


def test_features_and_tokens_are_dropped_independently():
    """No two columns and no two rows go together more than chance has it."""
    kept = (dropout_mask(torch.empty(1024, 512), 512, 0.3, seed=4) > 0).double()
    for matrix in (kept, kept.T):
        together = torch.corrcoef(matrix).fill_diagonal_(0)
        assert together.abs().max() < 6.5 / matrix.shape[1] ** 0.5


def test_a_mask_has_the_inputs_shape_type_and_extremes():
    x = torch.empty(2, 3, 4, 5, dtype=torch.bfloat16)
    mask = dropout_mask(x, 20, 0.5, seed=1)
    assert mask.shape == x.shape and mask.dtype == x.dtype
    assert (dropout_mask(x, 20, 1.0, seed=1) == 0).all()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_under_the_compiler_dropout_is_torchs(backend):
    torch._dynamo.reset()
    x, W, b, A, B = leaves(tensors(400))
    compiled = torch.compile(lambda *t: adapted_linear(*t, 0.7, P), backend=backend, fullgraph=True)
    update = compiled(x, W, b, A, B) - F.linear(x, W, b)
    exact = 0.7 * x @ A.T @ B.T
    assert not torch.allclose(update, exact)
    slope = (update * exact).sum() / exact.square().sum()  # 1 in the mean
    assert abs(slope - 1) < 0.2
