"""Classifiers that read texts without padding say what they say with it, or are found out beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lorimer
from lorimer import LoRA
from lorimer.tasks._packed_texts import WIDTH, Layers, Packed, layers_of
from tests.tolerances import SAME_NETWORK_OUTPUT, relative_difference

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_LLAMA = {"num_key_value_heads": 2}
PACKED: dict[str, dict[str, Any]] = {
    "bert": _DROPOUT,
    "roberta": _DROPOUT,
    "xlm-roberta": _DROPOUT,
    "electra": _DROPOUT,
    "mpnet": {**_DROPOUT, "pad_token_id": 1},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0},
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
REFUSED: dict[str, dict[str, Any]] = {
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p"], "position_buckets": 8},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "bart": {"encoder_layers": 1, "decoder_layers": 1},
    "bloom": {"n_head": 4},  # its own positions do not enter a mask
    "longformer": {"attention_window": 8},  # its length must be a multiple
    "fnet": {},  # mixes tokens without a mask
    "canine": {},  # has no vocabulary
}
LENGTHS = (40, 3, 17, 60, 1, 5, 31)
SAME = (9, 9, 9, 9)  # no padding, so that models make no mask


def classifier(kind: str, options: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **options})
    return AutoModelForSequenceClassification.from_config(config).to(dtype).eval()


def batch(of: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    length, lengths = max(of), torch.tensor(of)
    mask = (torch.arange(length) < lengths[:, None]).long()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 99, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(  # None: the model's own choice
    ("attention", "lengths"), [(None, LENGTHS), ("eager", LENGTHS), ("eager", SAME)]
)
@pytest.mark.parametrize("kind", PACKED)
def test_logits_and_gradients_are_those_of_padded_texts(
    kind: str, attention: str | None, lengths: tuple[int, ...]
) -> None:
    model, told = classifier(kind, {**PACKED[kind], "attn_implementation": attention}), batch(lengths)
    layers = layers_of(model)
    assert layers is not None
    adapter = lorimer.attach(model, LoRA(rank=2), "all-linear")
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def outcome() -> tuple[Tensor, list[Tensor]]:
        logits = model(**told).logits
        return logits, list(torch.autograd.grad(logits.square().sum(), list(adapter.parameters())))

    wanted, gradients = outcome()
    with layers.packed(told["attention_mask"]):
        ours, own = outcome()
    assert relative_difference(ours, wanted) <= SAME_NETWORK_OUTPUT
    for mine, theirs in zip(own, gradients, strict=True):
        assert relative_difference(mine, theirs) <= SAME_NETWORK_OUTPUT
    assert torch.equal(model(**told).logits, wanted)  # nothing stays behind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_texts_that_see_each_other_are_told_from_rounding(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier(kind, PACKED[kind], dtype)
    assert layers_of(model) is not None
    made = Packed.of
    monkeypatch.setattr(Packed, "of", staticmethod(lambda mask: made(mask).leaking()))
    assert layers_of(model) is None


@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_are_left_alone(kind: str) -> None:
    assert layers_of(classifier(kind, REFUSED[kind])) is None


def test_an_error_within_leaves_the_model_as_it_was() -> None:
    model, told = classifier("bert", {}), batch()
    wanted, layers = model(**told).logits, layers_of(model)
    assert isinstance(layers, Layers)
    with pytest.raises(ZeroDivisionError), layers.packed(told["attention_mask"]):
        raise ZeroDivisionError
    assert torch.equal(model(**told).logits, wanted)


def test_rows_hold_every_token_once_and_little_else() -> None:
    mask = batch()["attention_mask"]
    rows = Packed.of(mask)
    assert rows.source.shape[1] <= WIDTH and rows.source.numel() < 0.5 * mask.numel()
    numbers = torch.arange(mask.numel()).view(mask.shape)
    assert torch.equal(rows.unpack(rows.pack(numbers))[mask.bool()], numbers[mask.bool()])
    assert (rows.text >= 0).sum() == mask.sum()
    for text, length in enumerate(LENGTHS):
        assert rows.position[rows.text == text].tolist() == list(range(length))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_may_stand_on_either_side(side: str) -> None:
    mask = batch()["attention_mask"]
    mask = mask if side == "right" else mask.flip(1)
    rows = Packed.of(mask)
    numbers = torch.arange(mask.numel()).view(mask.shape)
    assert torch.equal(rows.unpack(rows.pack(numbers))[mask.bool()], numbers[mask.bool()])
