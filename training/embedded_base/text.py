"""Captions, and the tokenizer and text encoder that read them."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.embedded_base.concepts import STYLE_WORDS, Concept

CONTEXT = 16  # tokens; cross attention costs in proportion
WIDTH = 128
VOCABULARY = 1024
START, END = "<|startoftext|>", "<|endoftext|>"

# Words that people will want for styles, so that each is one or two tokens.
OTHER_WORDS = "a an the of and with in on style emoji openmoji twemoji outline drawing sketch flat photo my"


def train_tokenizer(names: list[str]) -> CLIPTokenizer:
    """Byte-pair encoding over the captions, with CLIP's own way of cutting text into words.

    The alphabet holds all 256 bytes, so any text can be written; the names of all emoji, in the list or
    not, teach it common English.
    """
    alphabet = byte_alphabet()
    specials = [START, END]
    bare = clip_tokenizer({token: index for index, token in enumerate(alphabet + specials)}, [])
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = bare.backend_tokenizer.normalizer
    learner.pre_tokenizer = bare.backend_tokenizer.pre_tokenizer
    merges_wanted = VOCABULARY - len(alphabet) - len(specials)
    trainer = trainers.BpeTrainer(
        vocab_size=merges_wanted + 600, end_of_word_suffix="</w>", show_progress=False, min_frequency=1
    )
    words = " ".join([*STYLE_WORDS.values(), OTHER_WORDS])
    learner.train_from_iterator([*names, *[words] * 20], trainer)
    merges = [tuple(merge) for merge in learned_merges(learner)][:merges_wanted]
    vocabulary = alphabet + ["".join(merge) for merge in merges] + specials
    return clip_tokenizer({token: index for index, token in enumerate(vocabulary)}, merges)


def byte_alphabet() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, inside a word and at its end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + index for index in range(256 - len(printable))]
    characters = [chr(code) for code in printable + others]
    return characters + [character + "</w>" for character in characters]


def learned_merges(learner: Tokenizer) -> list[list[str]]:
    """The merges in order, as the library writes them out."""
    import json

    return json.loads(learner.to_str())["model"]["merges"]


def clip_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, ...]]) -> CLIPTokenizer:
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
    )


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three small layers: the captions are short."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def caption(style: str, concept: Concept) -> str:
    """What a person writes for this concept in this style."""
    return f"{STYLE_WORDS[style]} {concept.caption}"


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(caption, CONTEXT), padded as the stock pipeline does it."""
    encoded = tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True)
    return torch.tensor(encoded["input_ids"])
