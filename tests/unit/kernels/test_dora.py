"""DoRA's fast path is its formula, its norm a constant, and its output may be changed by whoever gets it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lorimer.kernels.dora import dora_conv, dora_linear, row_norms
from lorimer.kernels.low_rank import low_rank_product
from tests.tolerances import SAME_OUTPUT, relative_difference
from tests.unit.kernels import formulas
from tests.unit.kernels.formulas import CONVOLUTIONS, ConvCase
from tests.unit.kernels.measures import SavedBytes, assert_same, leaves

SCALE = 0.7


def tensors(*lead: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x (*lead, 6), W, b, A, B of rank 2 and a magnitude."""
    shapes = [(*lead, 6), (5, 6), (5,), (2, 6), (5, 2)]
    drawn = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    return [*drawn, torch.rand(5, dtype=torch.float64).add(0.5).to(dtype)]


def ours(*inputs: Tensor) -> Tensor:
    return dora_linear(*inputs, SCALE)


def truth(*inputs: Tensor) -> Tensor:
    return formulas.dora_linear(*inputs, SCALE)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (64,), (2, 4), (0,), (2, 0)])
def test_linear(lead):
    assert_same(ours, truth, tensors(*lead))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lead", [(3,), (64,)])
def test_linear_in_other_precisions(dtype, lead):
    assert_same(ours, truth, tensors(*lead, dtype=dtype))


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case.name)
def test_convolution(case: ConvCase):
    inputs = [case.tensors()[name] for name in "xWbABm"]
    assert_same(
        lambda *t: dora_conv(*t, SCALE, case.how), lambda *t: formulas.dora_conv(*t, SCALE, case.how), inputs
    )


def test_convolution_without_batch():
    case = CONVOLUTIONS[1]
    x, *rest = (case.tensors()[name] for name in "xWbABm")
    one = dora_conv(x[0], *rest, SCALE, case.how)
    assert relative_difference(one, formulas.dora_conv(x, *rest, SCALE, case.how)[0]) <= 1e-12


@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 2)])
def test_norms_from_factors(shape):
    W, A, B = torch.randn(shape).double(), torch.randn(2, *shape[1:]).double(), torch.randn(5, 2).double()
    direct = (W.flatten(1) + low_rank_product(A.flatten(1), B, SCALE)).norm(dim=1)
    assert relative_difference(row_norms(W, A, B, SCALE), direct) <= 1e-12
    known = W.flatten(1).square().sum(1)
    assert relative_difference(row_norms(W, A, B, SCALE, known), direct) <= 1e-12


def test_norms_of_half_precision_weights_are_wide():
    W = torch.full((1, 4096), 0.01, dtype=torch.bfloat16)
    norm = row_norms(W, torch.zeros(1, 4096), torch.zeros(1, 1), 1.0)
    assert norm.dtype == torch.float32
    assert relative_difference(norm, W.double().norm(dim=1)) <= SAME_OUTPUT[torch.float32]


def test_a_cancelled_row_has_norm_zero_not_nan():
    W = torch.randn(3, 4)
    assert (row_norms(W, torch.eye(4), -W, 1.0) <= 1e-3).all()


def test_a_fresh_magnitude_leaves_the_layer_to_the_bit():
    for dtype in (torch.float32, torch.bfloat16):
        x, W, b, A, B, _ = tensors(3, dtype=dtype)
        magnitude = row_norms(W, A, B * 0, SCALE)
        assert torch.equal(
            dora_linear(x, W, b, A, B * 0, magnitude, SCALE), torch.nn.functional.linear(x, W, b)
        )


def test_a_row_of_zeros_trains_like_lora():
    x, W, b, A, B, m = tensors(7)
    W[0], B[0], m[0] = 0.0, 0.0, 0.0
    inputs = leaves([x, W, b, A, B, m])
    y = ours(*inputs)
    assert torch.equal(y[:, 0], b[0].expand(7))
    gradients = torch.autograd.grad(y.sum(), inputs)
    assert gradients[4][0].abs().min() > 0 and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("lead", [(3,), (64,)])
def test_a_magnitude_of_zero_keeps_its_gradient(lead):
    x, W, _, A, B, m = tensors(*lead)
    m[1] = 0.0
    m.requires_grad_()
    y = dora_linear(x, W, None, A, B, m, SCALE)
    moved = W[1] + SCALE * B[1] @ A
    assert y[:, 1].abs().max() < 1e-15
    assert (
        relative_difference(torch.autograd.grad(y.sum(), m)[0][1], (x @ moved).sum() / moved.norm()) <= 1e-11
    )


def test_beside_a_bias_a_magnitude_near_zero_gets_no_gradient_rather_than_noise():
    x, W, b, A, B, m = tensors(7)
    m[1] = 1e-12
    m.requires_grad_()
    gradient = torch.autograd.grad(dora_linear(x, W, b, A, B, m, SCALE).sum(), m)[0]
    assert gradient[1] == 0 and gradient[0] != 0


@pytest.mark.parametrize("changed", [lambda y: y.relu_(), lambda y: y.mul_(3), lambda y: y.sigmoid()])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_output_may_be_changed_in_place(changed, dropout):
    inputs = leaves(tensors(7))
    torch.manual_seed(3)
    gradients = torch.autograd.grad(changed(dora_linear(*inputs, SCALE, dropout)).square().sum(), inputs)
    torch.manual_seed(3)
    expected = torch.autograd.grad(changed(dora_linear(*inputs, SCALE, dropout) * 1.0).square().sum(), inputs)
    for left, right in zip(gradients, expected, strict=True):
        assert relative_difference(left, right) <= 1e-11


def test_a_second_backward_pass_through_a_kept_graph():
    inputs = leaves(tensors(7))
    loss = ours(*inputs).square().sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for left, right in zip(first, torch.autograd.grad(loss, inputs), strict=True):
        assert relative_difference(left, right) <= 1e-11


def test_the_output_is_let_go_with_the_backward_pass():
    inputs = leaves(tensors(7))
    hidden = ours(*inputs)
    memory = weakref.ref(hidden.untyped_storage())
    loss = hidden.sum()
    del hidden
    gc.collect()
    assert memory() is not None, "this test would see nothing"
    loss.backward()
    gc.collect()
    assert memory() is None and loss.grad_fn is not None


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("last", [torch.sigmoid, torch.relu_])
def test_gradient_checkpointing_changes_nothing(reentrant, last):
    inputs = leaves(tensors(7))
    block = lambda *inputs: last(ours(*inputs))  # noqa: E731
    expected = torch.autograd.grad(block(*inputs).sum(), inputs)
    checkpoint(block, *inputs, use_reentrant=reentrant).sum().backward()
    for tensor, right in zip(inputs, expected, strict=True):
        assert relative_difference(tensor.grad, right) <= 1e-11


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_compiler_sees_through(backend):
    torch._dynamo.reset()
    assert_same(torch.compile(ours, backend=backend, fullgraph=True), truth, tensors(3))


def test_autocast():
    inputs = leaves(tensors(40, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(*inputs)
    assert y.dtype == torch.bfloat16 and relative_difference(y, truth(*inputs)) <= SAME_OUTPUT[torch.bfloat16]
    for gradient in torch.autograd.grad(y.sum(), inputs):
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()


@pytest.mark.parametrize("tokens", [10, 64])
def test_kept_are_the_input_and_the_output(tokens):
    """The output counts as nothing where the next operation keeps it anyway, as the sigmoid does not."""
    x, W, b, A, B, m = tensors(tokens)
    trained = [tensor.requires_grad_() for tensor in (x, A, B, m)]
    counter = SavedBytes([W, b, A, B, m])
    with counter.counted():
        dora_linear(x, W, b, A, B, m, SCALE).sum()
    small = 8 * (2 * tokens + 5)  # A x, and the norms
    assert len(trained) == 4 and counter.total() <= 8 * tokens * (6 + 5) + small
