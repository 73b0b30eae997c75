"""Rows of batches: nothing is lost, cut or seen by what it should not see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorimer.kernels.attention import SHORT, attention_for
from lorimer.tasks._chat_tokens import Tokens
from lorimer.tasks._sequences import collate_rows, in_parts, length_groups, pack, row_of


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 90))
def test_packing_keeps_every_text_whole_in_rows_that_hold_them(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(rows) < 2 or filled[0] + filled[1] > capacity  # no two rows could have shared one


def test_rows_are_full_and_each_as_mixed_as_the_texts_are() -> None:
    """Else steps differ more from each other than chance makes them."""
    lengths = [16] * 400 + [128] * 50
    rows = pack(lengths, 256)
    assert len(rows) <= 1.1 * sum(lengths) / 256
    assert sum(len({lengths[index] for index in row}) == 2 for row in rows) > 0.5 * len(rows)


def test_a_text_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="text 1 has 11 tokens and a row 10"):
        pack([1, 11], 10)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 8))
def test_groups_are_of_neighbouring_lengths(lengths: list[int], batch_size: int) -> None:
    groups = length_groups(lengths, batch_size)
    for one, other in zip(lengths, groups, strict=True):
        assert all(one <= length for length, group in zip(lengths, groups, strict=True) if group > other)


def test_first_tokens_are_never_learned_and_positions_begin_anew() -> None:
    row = row_of([Tokens((5, 6), (True, True)), Tokens((7, 8, 9), (True, False, True))])
    assert row.ids == (5, 6, 7, 8, 9)
    assert row.learn == (False, True, False, False, True)
    assert row.positions == (0, 1, 0, 1, 2)


def test_padding_is_not_learned_and_is_no_part_of_a_packed_text() -> None:
    packed = row_of([Tokens((5, 6), (True, True)), Tokens((7,), (True,))])
    single = row_of([Tokens((4, 4, 4, 4, 4), (True,) * 5)])
    batch = collate_rows([packed, single, row_of([Tokens((3,), (True,))])], pad=0)
    assert batch["ids"].tolist() == [[5, 6, 7, 0, 0], [4] * 5, [3, 0, 0, 0, 0]]
    assert batch["learn"].sum() == 1 + 4
    assert batch["positions"].tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert batch["learn"].dtype == torch.bool


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_in_parts_are_as_rows_at_once_and_hardly_padded(side: str) -> None:
    lengths = torch.tensor([3, 9, 1, 9, 2])
    places = torch.arange(9)
    mask = places < lengths[:, None] if side == "right" else places >= 9 - lengths[:, None]
    batch = {"input_ids": torch.arange(45).reshape(5, 9) * mask, "attention_mask": mask.long()}
    widths = []

    def total(part: dict[str, torch.Tensor]) -> torch.Tensor:
        widths.append(part["input_ids"].shape[1])
        return (part["input_ids"] * part["attention_mask"]).sum(1)

    assert torch.equal(in_parts(total, batch, lengths, size=2), total(batch))
    assert widths[:-1] == [2, 9, 9]


def test_only_short_texts_in_training_get_plain_products() -> None:
    def kernels(length: int, device: str = "cpu") -> bool:
        with attention_for(length, torch.device(device)):
            return torch.backends.cuda.flash_sdp_enabled()

    assert kernels(SHORT)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels(SHORT)
        assert kernels(SHORT + 1) and kernels(SHORT, "meta")
        with torch.no_grad():
            assert kernels(SHORT)
    assert kernels(SHORT)
