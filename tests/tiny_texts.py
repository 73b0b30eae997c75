"""Language models, tokenizers and data so small that a run takes a blink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(template: str | None = CHATML) -> Any:
    """Every byte is a token, beside the special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "</s>"],
    )
    fast.chat_template = template
    return fast


def tiny_causal(seed: int = 0, **options: Any) -> Any:
    """A Llama of two layers with untrained weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": len(SPECIAL) + 256,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "pad_token_id": 1,
            "bos_token_id": 2,
            "eos_token_id": 5,
            "tie_word_embeddings": True,
            **options,
        }
    )
    return LlamaForCausalLM(config).eval()


def save_tiny_causal(folder: Path, **options: Any) -> Path:
    """A folder in transformers' layout with that model and tokenizer; returns it."""
    tiny_causal(**options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_encoder(folder: Path, **options: Any) -> Path:
    """A BERT of two layers without a head, as encoders come, and a tokenizer; returns the folder."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        **{
            "vocab_size": len(SPECIAL) + 256,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "pad_token_id": 1,
            **options,
        }
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer(template=None).save_pretrained(folder)
    return folder
