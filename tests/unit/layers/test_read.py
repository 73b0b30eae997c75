"""Layers that read their own weights: attention, encoders, recurrent layers, experts; real models of them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import lorimer
from lorimer import LoRA
from lorimer.errors import UsageError
from tests.tolerances import SAME_NETWORK_OUTPUT, relative_difference


def same(left: Tensor, right: Tensor) -> bool:
    return relative_difference(left, right) <= SAME_NETWORK_OUTPUT


def trained(model: nn.Module, targets: str | list[str], **options: object) -> nn.Module:
    adapter = lorimer.attach(model, LoRA(rank=2, alpha=4), targets, **options)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def every_gradient(model: nn.Module) -> bool:
    named = lorimer.attached(model)["default"].named_parameters()
    return all(parameter.grad is not None and parameter.grad.abs().max() > 0 for _, parameter in named)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_an_encoder_gives_in_evaluation_what_it_gives_in_training(targets, padded) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, x = trained(nn.TransformerEncoder(layer, 2), targets), torch.randn(2, 4, 8)
    mask = torch.tensor([[False] * 4, [False, False, True, True]]) if padded else None
    seen = torch.ones(2, 4, dtype=torch.bool) if mask is None else ~mask
    training = model(x, src_key_padding_mask=mask)[seen]
    model.eval()
    assert same(model(x, src_key_padding_mask=mask)[seen], training)
    with torch.no_grad():
        assert same(model(x, src_key_padding_mask=mask)[seen], training)
        with lorimer.disabled(model):
            assert not same(model(x, src_key_padding_mask=mask)[seen], training)
        lorimer.merge(model)
        assert same(model(x, src_key_padding_mask=mask)[seen], training)


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 4}])
def test_attention_is_adapted_with_and_without_gradients(options) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, batch_first=True, **options)})
    trained(model, "attention")
    q, k, v = (
        torch.randn(2, 5, 8),
        torch.randn(2, 3, options.get("kdim", 8)),
        torch.randn(2, 3, options.get("vdim", 8)),
    )
    training, weights = model["attention"](q, k, v)
    training.square().sum().backward()
    assert every_gradient(model)
    model.eval()
    with torch.no_grad():
        output, shown = model["attention"](q, k, v)
        assert same(output, training) and same(shown, weights)
        assert same(model["attention"](q, k, v, need_weights=False)[0], training)


def test_a_bias_of_a_layer_that_is_read_is_trained_in_full_instead() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(UsageError, match="no bias"):
        lorimer.attach(model, LoRA(bias=True), "attention")
    adapter = lorimer.attach(model, LoRA(), "attention", full="biases")
    assert {"attention.in_proj_bias", "attention.out_proj.bias"} <= adapter.layers.keys()


RECURRENT = [nn.LSTM, nn.GRU, nn.RNN]


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_is_adapted_wherever_it_goes(kind) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": kind(5, 4, num_layers=2, bidirectional=True)})
    x = torch.randn(3, 2, 5)
    base = model["rnn"](x)[0]
    weights = list(model["rnn"]._flat_weights)
    live = trained(model, "rnn")["rnn"](x)[0]
    live.square().sum().backward()
    assert every_gradient(model) and not same(live, base)
    assert torch.equal(copy.deepcopy(model)["rnn"](x)[0], live)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    assert torch.equal(torch.load(saved, weights_only=False)["rnn"](x)[0], live)
    model.double().float()
    model.eval()
    with torch.no_grad():
        assert same(model["rnn"](x)[0], live)
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
        output, _ = nn.utils.rnn.pad_packed_sequence(model["rnn"](packed)[0])
        assert same(output[:, 0], live[:, 0])
        lorimer.merge(model)
        assert same(model["rnn"](x)[0], live)
        lorimer.unmerge(model)
    lorimer.detach(model)
    assert same(model["rnn"](x)[0], base) and type(model["rnn"]) is kind
    assert all(mine is theirs for mine, theirs in zip(model["rnn"]._flat_weights, weights, strict=True))


def test_a_layer_used_twice_is_adapted_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.rnn(x)[0])[0]

    torch.manual_seed(0)
    model, x = trained(Twice(), "rnn"), torch.randn(3, 2, 4)
    live = model(x)
    lorimer.merge(model)
    assert same(model(x), live)


TOKENS = torch.tensor([[1, 5, 9, 2, 4], [3, 3, 0, 7, 1]])
SMALL = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
    "pad_token_id": None,
}


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**SMALL, intermediate_size=8, num_local_experts=3))


def qwen() -> nn.Module:
    sizes = {"intermediate_size": 8, "moe_intermediate_size": 8, "head_dim": 4}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **sizes, num_experts=3, num_experts_per_tok=2))


def gpt_oss() -> nn.Module:
    sizes = {"intermediate_size": 8, "head_dim": 4, "num_local_experts": 3, "num_experts_per_tok": 2}
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    return GptOssForCausalLM(GptOssConfig(**SMALL, **sizes, rope_parameters=plain))


@pytest.mark.parametrize("make", [mixtral, qwen, gpt_oss])
def test_experts_of_real_models_train_save_load_and_merge(make, tmp_path) -> None:
    torch.manual_seed(0)
    model = make().eval()
    twin, base = copy.deepcopy(model), model(TOKENS).logits
    adapter = lorimer.attach(model, LoRA(rank=2, alpha=4), "experts")
    experts = [path for path in adapter.layers if "experts" in path]
    assert [path.rpartition(".")[2] for path in experts] == ["gate_up_proj", "down_proj"]
    optimizer = torch.optim.Adam(adapter.parameters(), 0.05)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and every_gradient(model)
    live = model(TOKENS).logits
    assert not same(live, base)
    path = lorimer.save(adapter, tmp_path / "a.safetensors", format="lorimer")
    lorimer.load(twin, path)
    assert torch.equal(twin(TOKENS).logits, live)
    lorimer.merge(model)
    assert same(model(TOKENS).logits, live)
    lorimer.unmerge(model)
    lorimer.detach(model)
    assert torch.equal(model(TOKENS).logits, base)


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_an_experts_update_is_of_its_own_two_sides(make) -> None:
    """A has a column for each input of the expert and B a row for each output, however the weight lies."""
    torch.manual_seed(0)
    adapter = lorimer.attach(make(), LoRA(rank=2), "all-linear-experts")
    (up,) = [each for path, each in adapter.layers.items() if path.endswith("gate_up_proj")]
    assert up.A.shape == (3, 2, 8) and up.B.shape == (3, 16, 2)


def test_a_real_gpt2_is_adapted_through_its_own_kind_of_linear() -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 13, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)).eval()
    trained(model, ["c_attn", "c_proj", "c_fc", "wte"], tied="together")
    live = model(TOKENS).logits
    assert len(lorimer.attached(model)["default"].layers) == 5
    live.square().mean().backward()
    assert every_gradient(model)
    lorimer.merge(model)
    assert same(model(TOKENS).logits, live) and model.lm_head.weight is model.transformer.wte.weight
