"""Inputs are had again from what autograd keeps: same gradients, fewer bytes, and never from stale values."""

from __future__ import annotations

import copy
import gc
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorimer.kernels import low_rank
from lorimer.kernels.low_rank import adapted_linear
from lorimer.kernels.rematerialise import Input, kept_form
from tests.tolerances import relative_difference
from tests.unit.kernels.measures import SavedBytes

TOKENS, WIDTH = 12, 8


def factors(out: int = 4) -> list[Tensor]:
    """W frozen, A and B trained."""
    W = torch.randn(out, WIDTH, dtype=torch.float64)
    A, B = torch.randn(2, WIDTH, dtype=torch.float64), torch.randn(out, 2, dtype=torch.float64)
    return [W, A.requires_grad_(), B.requires_grad_()]


def source(*lead: int) -> Tensor:
    return torch.randn(*(lead or (TOKENS,)), WIDTH, dtype=torch.float64, requires_grad=True)


def gated(h: Tensor) -> Tensor:
    return F.silu(h) * h.cos()


def normalised(h: Tensor) -> Tensor:
    weight = torch.linspace(0.5, 1.5, WIDTH, dtype=torch.float64)
    return weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))


PRODUCTS = [gated, normalised]


@pytest.mark.parametrize("make", PRODUCTS)
def test_products_are_recognised_and_had_again(make):
    x = make(source(2, 5))
    form = kept_form(x, scales=True)
    assert form.full[0] is not x and relative_difference(form.whole(), x.detach()) <= 1e-15
    assert (form.rows is not None) == (form.columns is not None) == (make is normalised)


def test_a_product_of_two_is_the_same_to_the_bit():
    x = gated(source())
    assert torch.equal(kept_form(x, scales=False).core(), x)


@pytest.mark.parametrize(
    "make",
    [
        lambda h: h,  # a leaf
        lambda h: h.exp(),  # no product
        lambda h: h.detach() * 2,  # nothing recorded
        lambda h: h.exp() * h.sin() * h.detach(),  # three operands cost two products
        lambda h: (h.exp() * h.sin()).t().t(),  # a view of a product
        lambda h: h.exp() * h[0:1],  # an operand that is neither scale nor of full size
        lambda h: (h.float() * h.float()).double(),  # another type
        lambda h: (h.exp() * h.sin()).add_(1),
    ],
)
def test_other_inputs_are_kept_as_they_are(make):
    x = make(source())
    assert kept_form(x, scales=True).full[0] is x


def test_scales_only_where_the_layer_commutes_with_them():
    x = normalised(source())
    assert kept_form(x, scales=False).full[0] is x


def test_an_input_changed_behind_autograds_back_is_kept_itself():
    x = gated(source())
    with torch.no_grad():
        x.mul_(2)
    assert kept_form(x, scales=True).full[0] is x


def test_an_operand_changed_before_is_not_used():
    a, b = source().exp(), source().exp()
    x = a * b
    with torch.no_grad():
        a.mul_(2)
    assert kept_form(x, scales=True).full[0] is x


def test_an_operand_changed_later_raises_and_gives_no_wrong_gradient():
    a, b = source().exp(), source().cos().detach()
    W, A, B = factors()
    y = adapted_linear(a * b, W, None, A, B, 1.0)
    b.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("make", PRODUCTS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("tokens", [TOKENS, 64])
def test_gradients_are_those_of_a_kept_input(make, dropout, tokens, monkeypatch):
    h, (W, A, B) = source(tokens), factors()
    wanted = [h, A, B]

    def gradients() -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        return torch.autograd.grad(adapted_linear(make(h), W, None, A, B, 0.7, dropout).sin().sum(), wanted)

    ours = gradients()
    monkeypatch.setattr(low_rank, "kept_form", lambda x, scales: Input((x,)))
    for left, right in zip(ours, gradients(), strict=True):
        if make is gated:
            assert torch.equal(left, right)
        assert relative_difference(left, right) <= 1e-12


@pytest.mark.parametrize("make", PRODUCTS)
def test_the_input_costs_no_memory_of_its_own(make):
    h, (W, A, B) = source(), factors()

    def kept(adapted: bool) -> int:
        counter = SavedBytes([W, A, B])
        with counter.counted():
            x = make(h)
            y = adapted_linear(x, W, None, A, B, 0.7) if adapted else F.linear(x, W)
            y.sum()
        return counter.total()

    hidden = 8 * TOKENS * 2
    assert kept(adapted=True) <= kept(adapted=False) + hidden


def test_the_input_itself_is_let_go():
    h, (W, A, B) = source(), factors()
    x = gated(h)
    memory = weakref.ref(x.untyped_storage())
    y = adapted_linear(x, W, None, A, B, 0.7)
    del x
    gc.collect()
    assert memory() is None
    y.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_never_made_to_compute_early(reentrant):
    """A product from inside a checkpointed block: to look at its operands would run the block again."""
    h, (W, A, B) = source(), factors()
    runs = []

    def block(h: Tensor) -> Tensor:
        runs.append(1)
        return gated(h)

    y = adapted_linear(checkpoint(block, h, use_reentrant=reentrant), W, None, A, B, 0.7)
    assert len(runs) == 1
    y.sum().backward()
    assert len(runs) == 2


def test_hooks_on_saved_tensors_get_the_input():
    x, (W, A, B) = gated(source()), factors()
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (seen.append(t.data_ptr()), t)[1], lambda t: t):
        adapted_linear(x, W, None, A, B, 0.7)
    assert x.data_ptr() in seen


def adapted_llama(layers: int = 2) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            layer.A = nn.Parameter(torch.randn(2, layer.in_features) * 0.1)
            layer.B = nn.Parameter(torch.randn(layer.out_features, 2) * 0.1)
            layer.forward = types.MethodType(
                lambda self, x: adapted_linear(x, self.weight, self.bias, self.A, self.B, 1.0), layer
            )
    return model


def test_a_llama_keeps_next_to_nothing_beyond_the_frozen_one():
    model, tokens = adapted_llama(), torch.randint(0, 64, (2, 16))
    frozen = copy.deepcopy(model)
    for layer in frozen.modules():
        layer.__dict__.pop("forward", None)

    def loss(model: nn.Module) -> Tensor:
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        return model(inputs_embeds=embedded, labels=tokens).loss

    def kept(model: nn.Module) -> int:
        counter = SavedBytes([*model.parameters(), *model.buffers()])
        with counter.counted():
            loss(model)
        return counter.total()

    hidden = 2 * 7 * 4 * 2 * tokens.numel()  # layers, projections, bytes, rank, tokens
    assert kept(model) <= kept(frozen) + hidden
    ours = torch.autograd.grad(loss(model), leaves_of(model))
    for left, right in zip(ours, reference_gradients(model, loss), strict=True):
        assert relative_difference(left, right) <= 2e-5


def leaves_of(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def reference_gradients(model: nn.Module, loss) -> tuple[Tensor, ...]:
    """By autograd through W + B A."""
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if "forward" in layer.__dict__:
            layer.forward = types.MethodType(
                lambda self, x: F.linear(x, self.weight + self.B @ self.A, self.bias), layer
            )
    return torch.autograd.grad(loss(plain), leaves_of(plain))
