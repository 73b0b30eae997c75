"""A small Chinese encoder whose tokens are characters, trained by filling gaps in reviews that have no label.

    python examples/sentiment/characters.py WORK [EPOCHS]

reads WORK/chinese/rest.txt, which examples/sentiment/data.py writes, and makes the folder WORK/characters: a
BERT (arXiv 1810.04805) of three layers, which examples/sentiment/chinese.yaml then adapts. No package was
found that carries an encoder for Chinese. An epoch takes a minute or two on two cores.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

LENGTH, BATCH = 64, 64
RARE = 5  # characters that stand in the reviews less often have no token
HIDDEN = 0.15  # share of the characters that are to be guessed
RATE = 1e-3
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def main(work: Path, epochs: int = 5) -> None:
    torch.manual_seed(0)
    texts = (work / "chinese" / "rest.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = tokenizer_of(texts)
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
    model = BertForMaskedLM(config).train()
    ids = [torch.tensor(row) for row in tokenizer(texts, truncation=True, max_length=LENGTH).input_ids]
    batches = sorted_into_batches(ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    begin = time.monotonic()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for place in torch.randperm(len(batches)).tolist():
            batch = batches[place]
            shown, chosen = with_gaps(batch, tokenizer.mask_token_id, len(SPECIAL))
            states = model.bert(input_ids=shown, attention_mask=(batch != 0).long()).last_hidden_state
            loss = cross_entropy(
                model.cls(states[chosen]), batch[chosen]
            )  # the gaps alone meet the vocabulary
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item()
        seconds = time.monotonic() - begin
        print(f"epoch {epoch} of {epochs}: loss {total / len(batches):.3f}, {seconds:.0f} s")
    model.bert.save_pretrained(work / "characters")
    tokenizer.save_pretrained(work / "characters")
    print(f"{work / 'characters'}: {sum(each.numel() for each in model.bert.parameters()):,} parameters")


def tokenizer_of(texts: list[str]) -> BertTokenizerFast:
    """Every character that is not rare is a token; words of letters or digits fall apart into theirs."""
    counts = Counter(character for text in texts for character in text.lower() if not character.isspace())
    frequent = sorted(character for character, count in counts.items() if count >= RARE)
    tokens = [*SPECIAL, *frequent, *(f"##{each}" for each in frequent if each.isascii() and each.isalnum())]
    return BertTokenizerFast(vocab={token: place for place, token in enumerate(tokens)})


def sorted_into_batches(ids: list[Tensor]) -> list[Tensor]:
    """(up to BATCH, length) each, of like lengths, padded with 0."""
    ids = sorted(ids, key=len)
    return [
        torch.nn.utils.rnn.pad_sequence(ids[first : first + BATCH], batch_first=True)
        for first in range(0, len(ids), BATCH)
    ]


def with_gaps(ids: Tensor, mask: int, first: int) -> tuple[Tensor, Tensor]:
    """What the model sees, and where it is to guess: of ten such tokens eight are hidden, one is another, one
    stays."""
    chosen = (torch.rand(ids.shape) < HIDDEN) & (ids >= first)
    way = torch.rand(ids.shape)
    others = torch.randint(first, int(ids.max()) + 1, ids.shape)
    shown = torch.where(chosen & (way < 0.8), mask, ids)
    shown = torch.where(chosen & (way > 0.9), others, shown)
    return shown, chosen


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
