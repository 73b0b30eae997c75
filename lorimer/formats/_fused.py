"""Layers that files keep as one: queries, keys and values below each other in the rows of one weight.

Adapters on the parts become one adapter on the whole, exactly; for LoRA on q, k and v

    up = | up_q            |     down = | down_q |     rank = the sum of the ranks
         |      up_k       |            | down_k |
         |           up_v  |            | down_v |

LoHa's factors likewise. DoRA's magnitudes belong to rows. An adapter trained on the
whole by another program has one `down` for all: each part gets a copy.

Tensors go by their suffixes in kohya's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lorimer.errors import FileFormatError

Tensors = dict[str, Tensor]
_DIAGONAL = ("lora_up.weight", "hada_w1_a", "hada_w2_a")  # (rows, rank)
_STACKED = ("lora_down.weight", "hada_w1_b", "hada_w2_b")  # (rank, columns)
_OF_ROWS = ("dora_scale",)  # (rows, 1)
_OF_BLOCKS = ("lokr_w1", "lokr_w1_a")  # each row stands for as many rows of the weight as w2 has
_SHARED = ("lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", *_STACKED)


def _require_rows(tensors: Mapping[str, Tensor]) -> None:
    """Raise `FileFormatError` for magnitudes over columns, whose norms are of all the parts together."""
    if any(suffix in tensors and tensors[suffix].shape[0] == 1 for suffix in _OF_ROWS):
        raise FileFormatError("with DoRA over columns")


def fuse(parts: Sequence[Tensors | None], shares: Sequence[int]) -> tuple[Tensors, list[int]]:
    """(tensors, ranks): one adapter on the whole that acts as `parts` do, all of one scale; None is a part
    without an adapter.

    Raises:
        FileFormatError: the method cannot be put together so.
    """
    present = [part for part in parts if part is not None]
    for part in present:
        _require_rows(part)
    suffixes = present[0].keys()
    strange = suffixes - {*_DIAGONAL, *_STACKED, *_OF_ROWS}
    if strange or any(part.keys() != suffixes for part in present):
        raise FileFormatError(f"with {', '.join(sorted(strange)) or 'different tensors'}")
    if len(present) < len(parts) and suffixes & set(_OF_ROWS):
        raise FileFormatError("with DoRA on some of them alone, as the others' magnitudes are not known")
    first = next(each for each in _DIAGONAL if each in suffixes)
    unit = next(part[first].shape[0] // share for part, share in zip(parts, shares, strict=True) if part)
    if any(part[first].shape[0] != unit * share for part, share in zip(parts, shares, strict=True) if part):
        raise FileFormatError("with such shares of its rows")
    ranks = [0 if part is None else part[first].shape[1] for part in parts]
    fused: Tensors = {}
    for suffix in suffixes:
        if suffix in _DIAGONAL:
            blank = present[0][suffix]
            blocks = [
                blank.new_zeros(unit * share, 0) if part is None else part[suffix]
                for part, share in zip(parts, shares, strict=True)
            ]
            fused[suffix] = torch.block_diag(*blocks)
        else:
            fused[suffix] = torch.cat([part[suffix] for part in present])
    return fused, ranks


def split(
    tensors: Tensors, shares: Sequence[int], ranks: Sequence[int] | None
) -> list[tuple[Tensors, float] | None]:
    """The inverse: for each part its tensors, and what share of the whole's alpha is its own. None for a
    part without an adapter.

    Args:
        ranks: of the parts, as `fuse` gave them, where the file says so.

    Raises:
        FileFormatError: the tensors cannot be shared out so.
    """
    _require_rows(tensors)
    strange = tensors.keys() - {*_DIAGONAL, *_SHARED, *_OF_ROWS, *_OF_BLOCKS}
    if strange:
        raise FileFormatError(f"with {', '.join(sorted(strange))}")
    diagonal = [suffix for suffix in _DIAGONAL if suffix in tensors]
    rank = tensors[diagonal[0]].shape[-1] if diagonal else 0
    for each in (ranks, [rank // len(shares)] * len(shares)):
        if each is None or len(each) != len(shares) or sum(each) != rank:
            continue
        if diagonal and _is_diagonal(tensors, shares, each):
            return _blocks(tensors, shares, each)
    rows = {suffix: list(_ranges(tensors[suffix].shape[0], shares))
            for suffix in (*_DIAGONAL, *_OF_ROWS, *_OF_BLOCKS) if suffix in tensors}  # fmt: skip
    return [
        (
            {
                suffix: (tensor[slice(*rows[suffix][part])] if suffix in rows else tensor).clone()
                for suffix, tensor in tensors.items()
            },
            1.0,
        )
        for part in range(len(shares))
    ]


def swap_halves(tensors: Tensors) -> Tensors:
    """An adapter on a weight whose two halves of rows change places; itself where they are not two square
    matrices.

    Raises:
        FileFormatError: the method's rows cannot be told.
    """
    shape = matrix_shape(tensors)
    if shape is None:
        raise FileFormatError("whose halves change places in this format")
    if shape[0] != 2 * shape[1]:
        return tensors
    left = _product(tensors, "lokr_w1")
    if left is not None and left[0] % 2:  # halves that end within a block
        raise FileFormatError(f"in {left[0]} blocks, whose halves change places in this format")
    rows = (*_DIAGONAL, *_OF_ROWS, *_OF_BLOCKS)
    return {
        suffix: torch.cat(tensor.chunk(2)[::-1]) if suffix in rows and len(tensor) > 1 else tensor
        for suffix, tensor in tensors.items()
    }


def matrix_shape(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(rows, columns) of the weight that an adapter is for; None where its tensors do not tell."""
    for up, down in zip(_DIAGONAL, _STACKED, strict=True):
        if up in tensors and down in tensors and tensors[up].ndim >= 2:
            return tensors[up].shape[0], tensors[down].shape[1:].numel()
    left = _product(tensors, "lokr_w1")
    right = _product(tensors, "lokr_w2")
    return (left[0] * right[0], left[1] * right[1]) if left and right else None


def _product(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int] | None:
    """The shape of a matrix that is whole or a product of two."""
    up, down = tensors.get(f"{name}_a", tensors.get(name)), tensors.get(f"{name}_b", tensors.get(name))
    return None if up is None or down is None else (up.shape[0], down.shape[1:].numel())


def _ranges(rows: int, shares: Sequence[int]) -> Iterator[tuple[int, int]]:
    if rows % sum(shares):
        raise FileFormatError(f"with {rows} rows for {sum(shares)} shares")
    place, unit = 0, rows // sum(shares)
    for share in shares:
        yield place, place + unit * share
        place += unit * share


def _is_diagonal(tensors: Tensors, shares: Sequence[int], ranks: Sequence[int]) -> bool:
    """Whether nothing but zeros stands off the blocks."""
    for suffix in _DIAGONAL:
        if suffix not in tensors:
            continue
        column = 0
        for rows, rank in zip(_ranges(tensors[suffix].shape[0], shares), ranks, strict=True):
            block = tensors[suffix][slice(*rows)]
            if block[:, :column].any() or block[:, column + rank :].any():
                return False
            column += rank
    return True


def _blocks(
    tensors: Tensors, shares: Sequence[int], ranks: Sequence[int]
) -> list[tuple[Tensors, float] | None]:
    parts: list[tuple[Tensors, float] | None] = []
    column = 0
    for number, rank in enumerate(ranks):
        own: Tensors = {}
        inner = slice(column, column + rank)
        for suffix, tensor in tensors.items():
            if suffix in _STACKED:
                own[suffix] = tensor[inner].clone()
                continue
            rows = slice(*list(_ranges(tensor.shape[0], shares))[number])
            own[suffix] = tensor[rows, inner].clone() if suffix in _DIAGONAL else tensor[rows].clone()
        parts.append((own, rank / sum(ranks)) if rank else None)
        column += rank
    return parts
