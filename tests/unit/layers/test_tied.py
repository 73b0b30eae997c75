"""Weights that several layers share: the user chooses and is told."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lorimer
from lorimer import LoRA, registry
from lorimer.errors import StateError, TargetError, UsageError
from lorimer.ops.files import attach_state
from tests.tolerances import SAME_NETWORK_OUTPUT, relative_difference

TOKENS = torch.tensor([[1, 5, 9, 2], [3, 3, 0, 7]])


def llama() -> LlamaForCausalLM:
    """A language model whose head is its embedding; token 0 is padding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        pad_token_id=0,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def logits(model: nn.Module) -> Tensor:
    return model(TOKENS).logits


def trained(
    targets: list[str], tied: str, model: nn.Module | None = None, name: str = "default"
) -> nn.Module:
    model = model or llama()
    adapter = lorimer.attach(model, LoRA(rank=2, alpha=6), targets, tied=tied, name=name)
    torch.manual_seed(len(name))
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def same(left: Tensor, right: Tensor) -> bool:
    return relative_difference(left, right) <= SAME_NETWORK_OUTPUT


def dense(adapter: nn.Module) -> Tensor:
    return 3.0 * adapter.B @ adapter.A


def test_it_is_refused_and_the_choices_are_told() -> None:
    with pytest.raises(TargetError, match=r"'lm_head' shares its weight with 'model\.embed_tokens'"):
        lorimer.attach(llama(), LoRA(), ["lm_head", "q_proj"])
    with pytest.raises(UsageError, match="Did you mean 'together'"):
        lorimer.attach(llama(), LoRA(), "lm_head", tied="togeter")


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]])
def test_together_one_adapter_acts_on_every_layer_with_the_weight(targets) -> None:
    model, truth = trained(targets, "together"), llama()
    layers = lorimer.attached(model)["default"].layers
    assert "lm_head" in layers and "model.embed_tokens" not in layers
    with torch.no_grad():  # the one weight, so both users see it
        truth.lm_head.weight.add_(dense(layers["lm_head"]))
        for path, adapter in layers.items():
            if path.endswith("q_proj"):
                truth.get_submodule(path).weight.add_(dense(adapter))
    assert same(logits(model), logits(truth))


def test_together_its_gradients_are_those_of_the_shared_weight() -> None:
    model = trained(["lm_head"], "together").double()
    (adapter,) = lorimer.attached(model)["default"].layers.values()
    logits(model).square().mean().backward()
    truth = llama().double()
    A, B = adapter.A.detach().requires_grad_(), adapter.B.detach().requires_grad_()
    weight = truth.lm_head.weight.detach() + 3.0 * B @ A
    output = torch.func.functional_call(
        truth, {"model.embed_tokens.weight": weight, "lm_head.weight": weight}, (TOKENS,), tie_weights=False
    )
    output.logits.square().mean().backward()
    torch.testing.assert_close(adapter.A.grad, A.grad)
    torch.testing.assert_close(adapter.B.grad, B.grad)


def test_together_each_parameter_trains_once_and_nothing_of_the_base() -> None:
    model = trained(["lm_head", "embed_tokens"], "together")
    adapter = lorimer.attached(model)["default"]
    assert [name for name, _ in adapter.named_parameters()] == ["lm_head.A", "lm_head.B"]
    assert adapter.report().trainable == 2 * (13 + 8)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in adapter.parameters()}


def test_together_merging_changes_the_one_weight_once() -> None:
    model = trained(["embed_tokens"], "together")
    weight, before, live = model.lm_head.weight, model.lm_head.weight.detach().clone(), logits(model)
    report = lorimer.merge(model)
    assert len(report.merged) == 1 and report.notes == ()
    assert model.lm_head.weight is model.model.embed_tokens.weight is weight
    assert same(logits(model), live)
    lorimer.unmerge(model)
    assert torch.equal(weight, before) and torch.equal(logits(model), live)
    lorimer.detach(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_apart_only_the_named_layer_changes_and_merging_says_so(target) -> None:
    model, base = trained([target], "apart"), llama()
    live, copied = logits(model), copy.deepcopy(model)
    other = base.model.embed_tokens if target == "lm_head" else base.lm_head
    report = lorimer.merge(model)
    assert "it is a weight of its own now" in str(report)
    assert same(logits(model), live)
    untouched = model.model.embed_tokens if target == "lm_head" else model.lm_head
    assert torch.equal(untouched.weight, other.weight)
    lorimer.unmerge(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings and torch.equal(logits(model), live)
    lorimer.merge(copied, keep_original=False)
    assert same(logits(copied), live)


@pytest.mark.parametrize("tied", ["together", "apart"])
def test_merged_saved_and_reloaded_it_is_what_it_was_live(tied, tmp_path: Path) -> None:
    model = trained(["lm_head", "q_proj"], tied)
    live = logits(model)
    lorimer.merge(model)
    assert model.config.tie_word_embeddings == (tied == "together")
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert same(logits(again), live)


@pytest.mark.parametrize("tied", ["together", "apart"])
def test_a_file_gives_it_back(tied, tmp_path: Path) -> None:
    model = trained(["lm_head"], tied)
    path = lorimer.save(lorimer.attached(model)["default"], tmp_path / "a.safetensors", format="lorimer")
    other = llama()
    adapter = lorimer.load(other, path)
    assert list(adapter.layers) == ["lm_head"] and torch.equal(logits(other), logits(model))
    assert bool(lorimer.merge(other).notes) == (tied == "apart")


def test_what_a_file_holds_for_both_layers_acts_on_models_that_share_nothing() -> None:
    model, loose = trained(["lm_head"], "together"), llama()
    loose.lm_head.weight = nn.Parameter(loose.lm_head.weight.detach().clone())
    attach_state(loose, lorimer.attached(model)["default"].state())
    assert same(logits(loose)[0], logits(model)[0])


def test_two_adapters_together_and_their_order() -> None:
    model = trained(["lm_head"], "together", trained(["embed_tokens"], "together", name="a"), name="bb")
    live = logits(model)
    lorimer.merge(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight and same(logits(model), live)


def test_together_and_apart_do_not_mix_on_an_embedding() -> None:
    model = trained(["lm_head"], "together", name="a")
    with pytest.raises(StateError, match="detach one kind"):
        trained(["embed_tokens"], "apart", model, name="b")
    assert list(lorimer.attached(model)) == ["a"]


def test_an_update_with_one_side_cannot_act_together() -> None:
    with pytest.raises(UsageError, match=r"'model\.embed_tokens' sees the weight .* not 'dora'"):
        lorimer.attach(llama(), registry.get("method", "dora")(rank=2), "lm_head", tied="together")


@pytest.mark.parametrize("tied", ["together", "apart"])
def test_new_tokens_are_trained_in_full(tied) -> None:
    model = llama()
    adapter = lorimer.attach(model, LoRA(rank=2), "q_proj", full={"embed_tokens": [11, 12]}, tied=tied)
    before = logits(model).detach()
    for path, each in adapter.layers.items():
        if not path.endswith("q_proj"):
            nn.init.normal_(each.value)
    live = logits(model)
    new = live[..., 11:] - before[..., 11:]
    assert torch.equal(live[..., :11], before[..., :11])  # no new token is in the input
    assert (new.abs().max() > 0.1) == (tied == "together")
    lorimer.merge(model)
    assert same(logits(model), live)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (tied == "together")
