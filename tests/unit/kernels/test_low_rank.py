"""The fast paths are the plain formulas, in every shape, type and setting that training meets."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lorimer.kernels.low_rank import (
    adapted_conv,
    adapted_linear,
    add_low_rank,
    add_low_rank_conv,
    add_low_rank_rows,
)
from tests.tolerances import SAME_OUTPUT, relative_difference
from tests.unit.kernels import formulas
from tests.unit.kernels.formulas import CONVOLUTIONS, ConvCase
from tests.unit.kernels.measures import SavedBytes, assert_same, leaves

SCALE = 0.7


def tensors(*lead: int, out: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x (*lead, 6), W, b, A, B of rank 2."""
    shapes = [(*lead, 6), (out, 6), (out,), (2, 6), (out, 2)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def whole(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
    return adapted_linear(x, W, b, A, B, SCALE)


def added(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
    return add_low_rank(F.linear(x, W, b), x, A, B, SCALE)


def truth(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
    return formulas.linear(x, W, b, A, B, SCALE)


both = pytest.mark.parametrize("ours", [whole, added])


@both
@pytest.mark.parametrize("lead", [(), (1,), (3,), (64,), (2, 4), (2, 1, 3), (0,), (2, 0)])
@pytest.mark.parametrize("out", [1, 5])
def test_linear(ours, lead, out):
    assert_same(ours, truth, tensors(*lead, out=out))


@both
@pytest.mark.parametrize(
    "view", [lambda x: x[::2, 1:], lambda x: x.transpose(0, 1), lambda x: x[:1].expand(4, 7, 6)]
)
def test_linear_of_views(ours, view):
    x, *rest = tensors(4, 7)
    assert_same(lambda x, *rest: ours(view(x), *rest), lambda x, *rest: truth(view(x), *rest), [x, *rest])


@both
@pytest.mark.parametrize("lead", [(3,), (64,)])
def test_linear_without_bias_and_by_finite_differences(ours, lead):
    x, W, _, A, B = leaves(tensors(*lead)[:5])
    assert torch.autograd.gradcheck(lambda x, W, A, B: ours(x, W, None, A, B), (x, W, A, B))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lead", [(3,), (64,)])
def test_linear_in_other_precisions(ours, dtype, lead):
    assert_same(ours, truth, tensors(*lead, dtype=dtype))


@both
def test_float32_factors_beside_a_half_precision_layer(ours):
    x, W, b, A, B = tensors(3, 4)
    coarse, fine = leaves([x.bfloat16(), W.bfloat16(), b.bfloat16()]), leaves([A.float(), B.float()])
    y = ours(*coarse, *fine)
    exact = truth(*(tensor.double() for tensor in [*coarse, *fine]))
    assert y.dtype == torch.bfloat16
    assert relative_difference(y, exact) <= SAME_OUTPUT[torch.bfloat16]
    y.sum().backward()
    assert [tensor.grad.dtype for tensor in [*coarse, *fine]] == [torch.bfloat16] * 3 + [torch.float32] * 2


@both
def test_autocast_is_that_of_a_linear_layer(ours):
    inputs = leaves(tensors(40, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(*inputs)
        assert y.dtype == F.linear(*inputs[:3]).dtype == torch.bfloat16
    assert relative_difference(y, truth(*inputs)) <= SAME_OUTPUT[torch.bfloat16]
    gradients = torch.autograd.grad(y.sum(), inputs)
    exact = torch.autograd.grad(truth(*inputs).sum(), inputs)
    for left, right in zip(gradients, exact, strict=True):
        assert left.dtype == torch.float32
        assert relative_difference(left, right) <= SAME_OUTPUT[torch.bfloat16]


@both
def test_a_backward_pass_under_autocast_keeps_the_forwards_precision(ours):
    inputs = leaves(tensors(40, dtype=torch.float32))
    factors = inputs[3:]  # the base's own backward pass beside `add_low_rank` is torch's
    expected = torch.autograd.grad(ours(*inputs).square().sum(), factors)
    loss = ours(*inputs).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(loss, factors)
    assert all(torch.equal(left, right) for left, right in zip(gradients, expected, strict=True))


def test_types_that_torch_does_not_mix_are_not_mixed():
    x, W, _, A, B = tensors(3)
    with pytest.raises(RuntimeError, match="dtype"):
        adapted_linear(x.bfloat16(), W.float(), None, A, B, SCALE)


@both
@pytest.mark.parametrize("wanted", ["x", "A", "B", "xA", "xB", "AB", "xAB"])
@pytest.mark.parametrize("lead", [(3,), (64,)])
def test_only_wanted_gradients(ours, wanted, lead):
    """LoRA-FA (frozen A), a first layer (no gradient for x), and a layer between others (no factors)."""
    inputs = dict(zip("xWbAB", tensors(*lead), strict=True))
    chosen = [inputs[name].requires_grad_() for name in wanted]
    gradients = torch.autograd.grad(ours(*inputs.values()).square().sum(), chosen)
    expected = torch.autograd.grad(truth(*inputs.values()).square().sum(), chosen)
    for left, right in zip(gradients, expected, strict=True):
        assert relative_difference(left, right) <= 1e-11


def test_nothing_is_recorded_without_gradients():
    inputs = leaves(tensors(3))
    with torch.no_grad():
        assert not whole(*inputs).requires_grad
    with torch.inference_mode():
        assert relative_difference(added(*inputs), whole(*inputs)) <= 1e-12


def test_the_addition_is_in_place():
    x, _, _, A, B = leaves(tensors(4))
    output = torch.randn(4, 5, dtype=torch.float64)
    place = output.data_ptr()
    assert add_low_rank(output, x, A, B, SCALE).data_ptr() == place


def test_an_output_whose_memory_is_out_of_order():
    x, W, _, A, B = tensors(4)
    output = F.linear(x, W).t().contiguous().t()
    assert not output.is_contiguous()
    assert relative_difference(add_low_rank(output, x, A, B, SCALE), truth(x, W, None, A, B)) <= 1e-12


def test_gradients_of_gradients_are_refused():
    inputs = leaves(tensors(3))
    gradient = torch.autograd.grad(whole(*inputs).square().sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()


def test_zero_factors_leave_the_layer_to_the_bit():
    for lead in [(3,), (64,)]:
        x, W, b, A, B = tensors(*lead, dtype=torch.float32)
        assert torch.equal(whole(x, W, b, A, B * 0), F.linear(x, W, b))


def assert_convolution(case: ConvCase, x: Tensor, truth=formulas.conv) -> None:
    inputs = [x, *(case.tensors()[name] for name in "WbAB")]

    def whole(x, W, b, A, B):
        return adapted_conv(x, W, b, A, B, SCALE, case.how)

    def added(x, W, b, A, B):
        return add_low_rank_conv(formulas.convolve(x, W, b, case.how), x, A, B, SCALE, case.how)

    for ours in (whole, added):
        assert_same(ours, lambda *t: truth(*t, SCALE, case.how), inputs)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case.name)
def test_convolution(case: ConvCase):
    assert_convolution(case, case.tensors()["x"])


@pytest.mark.parametrize(
    "case", [case for case in CONVOLUTIONS if len(case.kernel) == 2], ids=lambda case: case.name
)
def test_convolution_of_pictures_that_lie_channels_last(case: ConvCase):
    assert_convolution(case, case.tensors()["x"].to(memory_format=torch.channels_last))


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_in_other_precisions(case: ConvCase, dtype):
    inputs = [case.tensors()[name].to(dtype) for name in "xWbAB"]
    y = adapted_conv(*inputs, SCALE, case.how)
    exact = formulas.conv(*(tensor.double() for tensor in inputs), SCALE, case.how)
    assert y.dtype == dtype and relative_difference(y, exact) <= SAME_OUTPUT[dtype]


def test_convolution_without_batch_and_with_an_empty_one():
    case = CONVOLUTIONS[1]
    x = case.tensors()["x"]
    assert_convolution(case, x[0], lambda x, *rest: formulas.conv(x[None], *rest)[0])
    assert_convolution(case, x[:0])


SCALES = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def rows_by_hand(x: Tensor, W: Tensor, A: Tensor, B: Tensor, index: list[int]) -> Tensor:
    rows = []
    for row, chosen in zip(x, index, strict=True):
        update = 0.0 if chosen < 0 else float(SCALES[chosen]) * B[chosen] @ A[chosen]
        rows.append(F.linear(row, W + update))
    return torch.stack(rows)


@pytest.mark.parametrize("lead", [(4,), (4, 3), (4, 2, 3)])
@pytest.mark.parametrize("index", [[2, -1, 0, 2], [-1, -1, -1, -1], [1, 1, 1, 1]])
def test_rows_of_other_adapters(lead, index):
    x, W, _, _, _ = tensors(*lead)
    A, B = torch.randn(3, 2, 6, dtype=torch.float64), torch.randn(3, 5, 2, dtype=torch.float64)
    assert_same(
        lambda x, W, A, B: add_low_rank_rows(F.linear(x, W), x, A, B, SCALES, torch.tensor(index)),
        lambda x, W, A, B: rows_by_hand(x, W, A, B, index) + 0 * A.sum() + 0 * B.sum(),
        [x, W, A, B],
    )


def test_a_row_without_an_adapter_is_untouched_by_a_broken_one():
    x, W, _, _, _ = tensors(2, 3)
    A, B = torch.full((1, 2, 6), torch.nan).double(), torch.randn(1, 5, 2, dtype=torch.float64)
    output = add_low_rank_rows(F.linear(x, W), x, A, B, SCALES[:1], torch.tensor([-1, 0]))
    assert torch.equal(output[0], F.linear(x, W)[0]) and output[1].isnan().all()


@both
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compiler_sees_through(ours, backend):
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    assert_same(compiled, truth, tensors(3))


def test_the_compiler_sees_through_mixed_rows_and_convolutions():
    torch._dynamo.reset()
    x, W, _, _, _ = tensors(2, 3)
    A, B, index = torch.randn(3, 2, 6).double(), torch.randn(3, 5, 2).double(), torch.tensor([2, -1])
    mixed = lambda x, W, A, B: add_low_rank_rows(F.linear(x, W), x, A, B, SCALES, index)  # noqa: E731
    assert_same(torch.compile(mixed, backend="eager", fullgraph=True), mixed, [x, W, A, B])
    case = CONVOLUTIONS[1]
    convolved = partial(adapted_conv, scale=SCALE, convolution=case.how)
    inputs = [case.tensors()[name] for name in "xWbAB"]
    assert_same(torch.compile(convolved, backend="eager", fullgraph=True), convolved, inputs)


@both
def test_functional_transforms(ours):
    x, W, b, A, B = tensors(3)
    by_transform = torch.func.grad(lambda A: ours(x, W, b, A, B).square().sum())(A)
    A.requires_grad_()
    expected = torch.autograd.grad(truth(x, W, b, A, B).square().sum(), A)[0]
    assert relative_difference(by_transform, expected) <= 1e-11


@both
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("lead", [(3,), (64,)])
def test_gradient_checkpointing_changes_nothing(ours, reentrant, lead):
    inputs = leaves(tensors(*lead))
    block = lambda x, *rest: ours(torch.tanh(x) * x.cos(), *rest).sin()  # noqa: E731
    expected = torch.autograd.grad(block(*inputs).sum(), inputs)
    checkpoint(block, *inputs, use_reentrant=reentrant).sum().backward()
    assert all(torch.equal(tensor.grad, right) for tensor, right in zip(inputs, expected, strict=True))


@both
def test_checkpointing_keeps_nothing_inside_and_a_held_loss_keeps_nothing_either(ours):
    inputs, inside = leaves(tensors(7)), []

    def block(x: Tensor, *rest: Tensor) -> Tensor:
        hidden = x.sin()
        inside.append(weakref.ref(hidden.untyped_storage()))
        return ours(hidden, *rest).sin()

    loss = checkpoint(block, *inputs, use_reentrant=False).sum()
    assert inside[-1]() is None
    loss = block(*inputs).sum()
    assert inside[-1]() is not None
    loss.backward()
    assert inside[-1]() is None and loss.grad_fn is not None


def kept_bytes(ours, lead: tuple[int, ...], frozen: str = "Wb") -> int:
    inputs = dict(zip("xWbAB", tensors(*lead), strict=True))
    for name, tensor in inputs.items():
        tensor.requires_grad_(name not in frozen)
    counter = SavedBytes([inputs[name] for name in "WbAB"])
    with counter.counted():
        ours(*inputs.values()).sum()
    return counter.total()


@both
def test_of_the_activations_only_the_input_is_kept(ours):
    tokens, hidden = 10, 2
    assert kept_bytes(ours, (tokens,)) <= 8 * tokens * (6 + hidden)


@both
def test_a_frozen_A_keeps_only_the_hidden(ours):
    assert kept_bytes(ours, (10,), frozen="WbA") == 8 * 10 * 2


def test_merged_products_keep_the_input_alone():
    assert kept_bytes(whole, (64,)) == 8 * 64 * 6
