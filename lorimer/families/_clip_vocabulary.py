"""CLIP's tokens, made from the merges of its byte-pair encoding, so that single-file checkpoints, which hold
no tokenizer, need nothing from a hub. `_data/README.md` says where the merges are from."""

from __future__ import annotations

import gzip
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = Path(__file__).parent / "_data" / "clip_merges.txt.gz"


def clip_merges() -> list[tuple[str, str]]:
    """The pairs of symbols that are joined, the first to be joined first."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    return [(left, right) for left, right in (line.split() for line in lines)]


def clip_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token -> number: the bytes, the bytes at the end of a word, what merges make of them, start and end."""
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges)]
    return {token: number for number, token in enumerate([*tokens, START, END])}


def _byte_letters() -> list[str]:
    """A printable character for each byte: itself where it is one, else one from 256 on; the former first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in (*printable, *range(256, 256 + others))]
