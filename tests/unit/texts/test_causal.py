"""What is said of a model's tokens: exactly what the model itself says, packed or not."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import lorimer
from lorimer.tasks._causal import head_of, log_likelihoods, losses, mean_loss
from lorimer.tasks._chat_tokens import Tokens
from lorimer.tasks._sequences import collate_rows, row_of
from tests.tiny_texts import tiny_causal
from tests.tolerances import SAME_NETWORK_OUTPUT

TEXTS = [Tokens(tuple(range(10, 10 + n)), tuple(place % 3 != 1 for place in range(n))) for n in (5, 9, 3, 12)]


def adapted(**options: object) -> torch.nn.Module:
    model = tiny_causal(**options)
    adapter = lorimer.attach(model, lorimer.method("lora", rank=2), exclude=["lm_head"])
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def by_the_model(model: torch.nn.Module) -> list[torch.Tensor]:
    """Of each text alone, the losses of its learned tokens, from the model's own logits."""
    found = []
    for text in TEXTS:
        row = row_of([text])
        ids = torch.tensor([row.ids])
        each = cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        found.append(each[torch.tensor(row.learn[1:])])
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_losses_are_the_models_own_in_packed_and_padded_rows(tied: bool) -> None:
    model = adapted(tie_word_embeddings=tied)
    head = head_of(model)
    assert head.in_chunks and head.packs
    wanted = by_the_model(model)
    padded = collate_rows([row_of([text]) for text in TEXTS], pad=1)
    packed = collate_rows([row_of(TEXTS[:3]), row_of(TEXTS[3:])], pad=1)
    for batch in (padded, packed):
        assert torch.allclose(losses(model, head, batch), torch.cat(wanted), atol=SAME_NETWORK_OUTPUT)
        mean = mean_loss(model, head, batch)
        assert mean.item() == pytest.approx(torch.cat(wanted).mean().item(), abs=SAME_NETWORK_OUTPUT)
    sums, counts = log_likelihoods(model, head, padded)
    assert counts.tolist() == [len(each) for each in wanted]
    assert torch.allclose(sums, -torch.stack([each.sum() for each in wanted]), atol=SAME_NETWORK_OUTPUT)


def test_gradients_of_a_packed_batch_are_those_of_its_texts() -> None:
    model = adapted()
    head = head_of(model)
    trained = [each for each in model.parameters() if each.requires_grad]
    wanted = torch.autograd.grad(torch.cat(by_the_model(model)).mean(), trained)
    got = torch.autograd.grad(mean_loss(model, head, collate_rows([row_of(TEXTS)], pad=1)), trained)
    assert all(torch.allclose(a, b, atol=SAME_NETWORK_OUTPUT) for a, b in zip(got, wanted, strict=True))


def test_a_head_that_does_more_is_found_out_and_still_right() -> None:
    """A model that bends its logits in a way its config does not tell."""
    model = adapted(tie_word_embeddings=False)
    real = type(model).forward

    class Bent(type(model)):  # type: ignore[misc]
        def forward(self, *arguments: object, **options: object) -> object:
            out = real(self, *arguments, **options)
            out.logits = out.logits - out.logits.square()
            return out

    model.__class__ = Bent
    head = head_of(model)
    assert not head.in_chunks
    padded = collate_rows([row_of([text]) for text in TEXTS], pad=1)
    wanted = torch.cat(by_the_model(model))
    assert torch.allclose(losses(model, head, padded), wanted, atol=SAME_NETWORK_OUTPUT)
