"""The three products between a wide matrix and a thin one, with dropout on the wide side, in Triton.

    narrow       thin = drop(wide) factor^T          A meets the input
    widen        wide += drop(thin factor)           the gradient goes back to the input
    correlate    gradient = thin^T drop(wide)        the gradient of A

    wide (tokens, features), thin (tokens, rank), factor (rank, features); drop(x) = x · mask / (1 - p)

Each reads the wide matrix once, and the mask is drawn where an entry is at hand: nothing of the wide size is
written beside the result. A mask's row takes two words from Philox (Salmon et al. 2011), its counter the
token; each entry mixes them with its feature by MurmurHash3's finaliser. Ten operations an entry keep the
kernels bound by memory, as a Philox draw per entry would not.

Sums are in float32, in an order that depends on sizes alone: the same bits each time, no atomic additions.
The seed is read from the device, so that a captured CUDA graph draws a new mask at each replay.

Run in Triton's interpreter and compiled for Ampere and Hopper (nothing spills from the registers), but never
yet run on a GPU: sizes of tiles are estimates, not tuned.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOKENS, _FEATURES = 64, 64  # a tile of the wide side
_PROGRAMS = 512  # enough to fill a large GPU
_LEAST_TILES = 4  # per program, else partial sums outweigh what they sum


def narrow(wide: Tensor, factor: Tensor, p: float, seed: Tensor) -> Tensor:
    """drop(wide) factor^T, (tokens, rank) in wide's type; wide, factor and seed () contiguous."""
    (tokens, features), rank = wide.shape, len(factor)
    blocks = triton.cdiv(tokens, _TOKENS)
    pieces, length = _pieces(features, blocks, _FEATURES)
    parts = _parts(pieces, (tokens, rank), wide)
    with torch.cuda.device_of(wide):
        _narrow[blocks, pieces](
            wide, factor, parts, seed, *_chance(p), tokens, features, rank, length, **_shape_of_tiles(factor)
        )
    return _summed(parts, wide.dtype)


def widen(thin: Tensor, factor: Tensor, p: float, seed: Tensor, onto: Tensor | None = None) -> Tensor:
    """onto + drop(thin factor) (tokens, features), in place of `onto`; without it in thin's type."""
    (tokens, rank), features = thin.shape, factor.shape[1]
    wide = thin.new_empty(tokens, features) if onto is None else onto
    grid = triton.cdiv(tokens, _TOKENS), triton.cdiv(features, _FEATURES)
    with torch.cuda.device_of(wide):
        _widen[grid](
            wide, thin, factor, seed, *_chance(p), tokens, features, rank, onto is not None,
            **_shape_of_tiles(factor),
        )  # fmt: skip
    return wide


def correlate(thin: Tensor, wide: Tensor, p: float, seed: Tensor) -> Tensor:
    """thin^T drop(wide), (rank, features) in wide's type."""
    (tokens, features), rank = wide.shape, thin.shape[1]
    blocks = triton.cdiv(features, _FEATURES)
    pieces, length = _pieces(tokens, blocks, _TOKENS)
    parts = _parts(pieces, (rank, features), wide)
    with torch.cuda.device_of(wide):
        _correlate[blocks, pieces](
            wide, thin, parts, seed, *_chance(p), tokens, features, rank, length, **_shape_of_tiles(thin.t())
        )
    return _summed(parts, wide.dtype)


def _pieces(length: int, blocks: int, tile: int) -> tuple[int, int]:
    """(pieces, length of one): how an axis that is summed over is shared out among programs."""
    wanted = min(_PROGRAMS // blocks, triton.cdiv(length, tile * _LEAST_TILES))
    piece = triton.cdiv(triton.cdiv(length, max(wanted, 1)), tile) * tile
    return triton.cdiv(length, piece), piece


def _parts(pieces: int, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Memory for partial sums; for a single one it is the result's own."""
    return like.new_empty((pieces, *shape), dtype=like.dtype if pieces == 1 else torch.float32)


def _summed(parts: Tensor, dtype: torch.dtype) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(dtype)


def _chance(p: float) -> tuple[int, float]:
    """(threshold, gain): words of 32 bits below the threshold drop their entry, the others count `gain`."""
    return round(p * 2**32), 0.0 if p >= 1 else 1 / (1 - p)


def _shape_of_tiles(factor: Tensor) -> dict[str, int | str]:
    """What the compiler must know. Tensor cores multiply tiles of 16 at least; float32 is as exact as
    torch's own products are set to be."""
    own = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return {
        "TOKENS": _TOKENS,
        "FEATURES": _FEATURES,
        "RANK": max(triton.next_power_of_2(len(factor)), 16),
        "PRECISION": "interpreted" if triton.knobs.runtime.interpret else own,
    }


@triton.jit
def _row_words(seed, tokens):
    """Two random words for each row of the mask, as columns."""
    first, second, _, _ = tl.randint4x(tl.load(seed), tokens)
    return first.to(tl.uint32, bitcast=True)[:, None], second.to(tl.uint32, bitcast=True)[:, None]


@triton.jit
def _is_kept(first, second, features, threshold):
    """The mask's tile for a column of row words and a row of features."""
    word = features.to(tl.uint32, bitcast=True)[None, :] * 0x9E3779B9 + first
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = word ^ second
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    word = word ^ (word >> 16)
    return word.to(tl.int64) >= threshold


@triton.jit
def _product(left, right, PRECISION: tl.constexpr):
    """left right in float32. The interpreter keeps bfloat16 as integers, and would multiply those."""
    if PRECISION == "interpreted":
        product = tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    else:
        product = tl.dot(left, right, input_precision=PRECISION)
    return product


@triton.jit
def _narrow(
    wide, factor, parts, seed, threshold, gain, n_tokens, n_features, rank, length,
    TOKENS: tl.constexpr, FEATURES: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: some tokens, one piece of the features."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channels = tl.arange(0, RANK)
    begin = tl.program_id(1) * length
    first, second = _row_words(seed, tokens)
    total = tl.zeros((TOKENS, RANK), tl.float32)
    for start in range(begin, tl.minimum(begin + length, n_features), FEATURES):
        features = start + tl.arange(0, FEATURES)
        inside = (tokens < n_tokens)[:, None] & (features < n_features)[None, :]
        place = tokens.to(tl.int64)[:, None] * n_features + features[None, :]
        kept = _is_kept(first, second, features, threshold)
        x = tl.where(kept, tl.load(wide + place, inside, 0.0), 0.0)
        known = (features < n_features)[:, None] & (channels < rank)[None, :]
        a = tl.load(factor + channels[None, :] * n_features + features[:, None], known, 0.0)
        total += _product(x, a, PRECISION)
    place = (tl.program_id(1).to(tl.int64) * n_tokens + tokens[:, None]) * rank + channels[None, :]
    tl.store(parts + place, total * gain, (tokens < n_tokens)[:, None] & (channels < rank)[None, :])


@triton.jit
def _widen(
    wide, thin, factor, seed, threshold, gain, n_tokens, n_features, rank, ADDS: tl.constexpr,
    TOKENS: tl.constexpr, FEATURES: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: one tile of the wide matrix."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    features = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    channels = tl.arange(0, RANK)
    known = (tokens < n_tokens)[:, None] & (channels < rank)[None, :]
    h = tl.load(thin + tokens.to(tl.int64)[:, None] * rank + channels[None, :], known, 0.0)
    known = (channels < rank)[:, None] & (features < n_features)[None, :]
    a = tl.load(factor + channels[:, None] * n_features + features[None, :], known, 0.0)
    first, second = _row_words(seed, tokens)
    kept = _is_kept(first, second, features, threshold)
    x = tl.where(kept, _product(h, a, PRECISION) * gain, 0.0)
    inside = (tokens < n_tokens)[:, None] & (features < n_features)[None, :]
    place = wide + tokens.to(tl.int64)[:, None] * n_features + features[None, :]
    if ADDS:
        x += tl.load(place, inside, 0.0)
    tl.store(place, x, inside)


@triton.jit
def _correlate(
    wide, thin, parts, seed, threshold, gain, n_tokens, n_features, rank, length,
    TOKENS: tl.constexpr, FEATURES: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: some features, one piece of the tokens."""
    features = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    channels = tl.arange(0, RANK)
    begin = tl.program_id(1) * length
    total = tl.zeros((RANK, FEATURES), tl.float32)
    for start in range(begin, tl.minimum(begin + length, n_tokens), TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        first, second = _row_words(seed, tokens)
        inside = (tokens < n_tokens)[:, None] & (features < n_features)[None, :]
        place = tokens.to(tl.int64)[:, None] * n_features + features[None, :]
        kept = _is_kept(first, second, features, threshold)
        x = tl.where(kept, tl.load(wide + place, inside, 0.0), 0.0)
        known = (channels < rank)[:, None] & (tokens < n_tokens)[None, :]
        h = tl.load(thin + tokens.to(tl.int64)[None, :] * rank + channels[:, None], known, 0.0)
        total += _product(h, x, PRECISION)
    place = (tl.program_id(1).to(tl.int64) * rank + channels[:, None]) * n_features + features[None, :]
    tl.store(parts + place, total * gain, (channels < rank)[:, None] & (features < n_features)[None, :])
