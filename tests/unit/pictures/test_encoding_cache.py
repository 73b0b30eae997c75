from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lorimer.errors import LorimerError
from lorimer.tasks._diffusion import load_diffusion
from lorimer.tasks._encoding_cache import EncodingCache, default_cache_folder, fingerprint
from tests.tiny_models import save_tiny_pipeline


class _Counting:
    """Doubles its input and remembers how many inputs it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, batch: Tensor) -> tuple[Tensor, ...]:
        self.batches.append(len(batch))
        return batch.float() * 2, batch.float() + 1


def _cache(folder: Path, encoder: nn.Module | None = None) -> EncodingCache:
    torch.manual_seed(0)
    return EncodingCache(folder, encoder or nn.Linear(2, 2), ("double", "next"))


def test_nothing_is_encoded_twice_in_one_run_or_the_next(tmp_path: Path) -> None:
    inputs = [torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([1, 2])]
    first, again = _Counting(), _Counting()
    fresh = _cache(tmp_path).encode(inputs, first)
    kept = _cache(tmp_path).encode(inputs, again)
    assert first.batches == [1, 1] and again.batches == []
    for left, right in zip(fresh, kept, strict=True):
        assert left.keys() == {"double", "next"}
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert fresh[2]["double"].tolist() == [2.0, 4.0]


def test_each_input_is_encoded_alone(tmp_path: Path) -> None:
    counting = _Counting()
    inputs = [torch.tensor([number]) for number in range(3)]
    encoded = _cache(tmp_path).encode(inputs, counting)
    assert counting.batches == [1, 1, 1]
    assert [each["next"].item() for each in encoded] == [1, 2, 3]


def test_another_input_shape_type_or_encoder_is_another_key(tmp_path: Path) -> None:
    counting = _Counting()
    torch.manual_seed(1)
    other_encoder = nn.Linear(2, 2)
    for number, (value, encoder) in enumerate(
        [
            (torch.tensor([1, 2]), None),
            (torch.tensor([1, 3]), None),
            (torch.tensor([[1, 2]]), None),
            (torch.tensor([1, 2], dtype=torch.int32), None),
            (torch.tensor([1, 2]), other_encoder),
        ]
    ):
        _cache(tmp_path, encoder).encode([value], counting)
        assert len(counting.batches) == number + 1


@pytest.mark.parametrize("damage", ["cut", "empty", "swapped", "foreign"])
def test_a_broken_entry_is_made_anew(tmp_path: Path, damage: str) -> None:
    inputs = [torch.tensor([1, 2]), torch.tensor([3, 4])]
    _cache(tmp_path).encode(inputs, _Counting())
    one, other = sorted(tmp_path.rglob("*.safetensors"))
    contents = {
        "cut": one.read_bytes()[:-3],
        "empty": b"",
        "swapped": other.read_bytes(),
        "foreign": b"hello" * 99,
    }
    one.write_bytes(contents[damage])
    counting = _Counting()
    encoded = _cache(tmp_path).encode(inputs, counting)
    assert counting.batches == [1]
    assert [each["double"].tolist() for each in encoded] == [[2.0, 4.0], [6.0, 8.0]]
    assert _cache(tmp_path).encode(inputs, counting) is not None and counting.batches == [1]


def test_an_encoding_with_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LorimerError, match="NaN"):
        _cache(tmp_path).encode([torch.tensor([1.0])], lambda batch: (batch / 0 * 0, batch))


def test_a_folder_that_cannot_be_written_is_named_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LorimerError, match=r"file/encodings(.|\n)*data\.cache"):
        _cache(tmp_path / "file").encode([torch.tensor([1])], _Counting())


def test_the_fingerprint_is_of_the_network_not_of_its_place(tmp_path: Path) -> None:
    here, there = (load_diffusion(str(save_tiny_pipeline(tmp_path / place))) for place in ("here", "there"))
    assert fingerprint(here.vae) == fingerprint(there.vae)
    assert fingerprint(here.text_encoder) == fingerprint(there.text_encoder)
    before = fingerprint(here.vae)
    with torch.no_grad():
        next(here.vae.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(here.vae) != before
    there.vae.register_to_config(scaling_factor=0.5)
    assert fingerprint(there.vae) != before


def test_the_default_folder_follows_the_desktop_standard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "lorimer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache" / "lorimer"
