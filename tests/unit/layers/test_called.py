"""Layers that are called: what the contract's inputs do not reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import LoRA, registry
from lorimer.errors import TargetError
from tests.tolerances import SAME_NETWORK_OUTPUT, relative_difference

METHODS = ["lora", "dora", "loha"]


def trained(layer: nn.Module, method: str = "lora") -> nn.Module:
    model = nn.ModuleDict({"layer": layer})
    adapter = lorimer.attach(model, registry.get("method", method)(rank=2, alpha=4), "layer")
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model


def same(left: Tensor, right: Tensor) -> bool:
    return relative_difference(left, right) <= SAME_NETWORK_OUTPUT


@pytest.mark.parametrize("method", METHODS)
def test_a_padding_token_stays_as_it_was(method) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(7, 4, padding_idx=3)
    nn.init.normal_(embedding.weight)
    before, tokens = embedding.weight.detach().clone(), torch.arange(7)
    model = trained(embedding, method)
    live = model["layer"](tokens)
    assert torch.equal(live[3], before[3]) and not same(live[4], before[4])
    lorimer.merge(model)
    assert torch.equal(model["layer"].weight[3], before[3]) and same(model["layer"](tokens), live)


@pytest.mark.parametrize("options", [{"padding_idx": 3}, {"scale_grad_by_freq": True}])
def test_an_embeddings_gradients_are_those_of_its_weight(options) -> None:
    torch.manual_seed(0)
    model = trained(nn.Embedding(7, 4, **options)).double()
    (adapter,) = lorimer.attached(model)["default"].layers.values()
    tokens = torch.tensor([1, 1, 1, 3, 3, 5])
    model["layer"](tokens).square().sum().backward()
    A, B = (tensor.detach().requires_grad_() for tensor in (adapter.A, adapter.B))
    weight = model["layer"].weight.detach() + 2.0 * (B @ A).T
    output = nn.functional.embedding(tokens, weight, **options)
    output.square().sum().backward()
    torch.testing.assert_close(adapter.A.grad, A.grad)
    torch.testing.assert_close(adapter.B.grad, B.grad)


def test_a_sparse_embedding_is_frozen_so_its_gradients_may_be_dense() -> None:
    model = trained(nn.Embedding(7, 4, sparse=True))
    model["layer"](torch.arange(7)).sum().backward()
    gradients = [parameter.grad for parameter in lorimer.attached(model)["default"].parameters()]
    assert all(gradient is not None and not gradient.is_sparse for gradient in gradients)


def test_an_embedding_that_rewrites_its_rows_is_refused() -> None:
    with pytest.raises(TargetError, match="set max_norm=None"):
        trained(nn.Embedding(7, 4, max_norm=1.0))


def test_a_bag_of_embeddings_is_adapted_through_its_weight() -> None:
    torch.manual_seed(0)
    model, tokens = trained(nn.EmbeddingBag(7, 4)), torch.tensor([[1, 2], [5, 5]])
    live = model["layer"](tokens)
    with lorimer.disabled(model):
        assert not same(model["layer"](tokens), live)
    lorimer.merge(model)
    assert same(model["layer"](tokens), live)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_may_be_told_its_output_size(method, groups) -> None:
    torch.manual_seed(0)
    model, x = trained(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups), method), torch.randn(2, 4, 3, 3)
    live = model["layer"](x, output_size=[8, 8])
    assert live.shape[-2:] == (8, 8)
    assert same(live[..., :7, :7], model["layer"](x))
    lorimer.merge(model)
    assert same(model["layer"](x, output_size=[8, 8]), live)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", 2])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_pad_as_the_layer_does(mode, padding, dimensions) -> None:
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    kernel = (3, 2, 3)[:dimensions] if padding == "same" else 3  # an even kernel pads unevenly
    layer = kind(2, 3, kernel, padding=padding, padding_mode=mode)
    model, x = trained(layer), torch.randn(2, 2, *(5, 4, 4)[:dimensions])
    live = model["layer"](x)
    lorimer.merge(model)
    assert same(model["layer"](x), live)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose2d])
def test_a_convolution_takes_one_example_without_a_batch(kind) -> None:
    torch.manual_seed(0)
    model, x = trained(kind(4, 6, 3)), torch.randn(4, *[6] * (1 if kind is nn.Conv1d else 2))
    assert same(model["layer"](x), model["layer"](x[None])[0])


def test_a_layer_of_another_kind_is_adapted_through_its_weight_or_refused_by_name() -> None:
    torch.manual_seed(0)
    model = trained(nn.Bilinear(4, 5, 3))
    x, y = torch.randn(2, 4), torch.randn(2, 5)
    live = model["layer"](x, y)
    lorimer.merge(model)
    assert same(model["layer"](x, y), live)
    with pytest.raises(TargetError, match=r"'layer' is a Dropout; layers that can be adapted: .*Embedding"):
        lorimer.attach(nn.ModuleDict({"layer": nn.Dropout()}), LoRA(), "layer")


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "loha"])
def test_a_program_may_change_a_layers_output_in_place(method) -> None:
    gradients = []
    for change in (torch.relu_, torch.relu):
        torch.manual_seed(0)
        model = trained(nn.Linear(6, 5), method)
        torch.manual_seed(2)
        output = change(model["layer"](torch.randn(2, 3, 6)))
        output.square().sum().backward()
        gradients.append([each.grad for each in lorimer.attached(model)["default"].parameters()])
    for changed, kept in zip(*gradients, strict=True):
        torch.testing.assert_close(changed, kept)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_runs_in_inference_mode_and_trains_afterwards(method) -> None:
    model, x = trained(nn.Linear(6, 5), method), torch.randn(2, 3, 6)
    with torch.inference_mode():
        output = model["layer"](x)
    again = model["layer"](x)
    assert same(output, again)
    again.sum().backward()
    assert all(each.grad is not None for each in lorimer.attached(model)["default"].parameters())
