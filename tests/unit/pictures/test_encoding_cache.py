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
    """Doubles its input and remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, item: str) -> dict[str, Tensor]:
        self.seen.append(item)
        numbers = torch.tensor([float(word) for word in item.split()])
        return {"double": numbers * 2, "next": numbers + 1}


def _cache(folder: Path, encoder: nn.Module | None = None, more: str = "") -> EncodingCache:
    torch.manual_seed(0)
    return EncodingCache(folder, [encoder or nn.Linear(2, 2)], more)


def _encoded(cache: EncodingCache, items: list[str], encode: _Counting) -> list[dict[str, Tensor]]:
    return [cache[key] for key in cache.ensure(items, str.encode, encode)]


def test_nothing_is_encoded_twice_in_one_run_or_the_next(tmp_path: Path) -> None:
    items = ["1 2", "3 4", "1 2"]
    first, again = _Counting(), _Counting()
    fresh = _encoded(_cache(tmp_path), items, first)
    kept = _encoded(_cache(tmp_path), items, again)
    assert first.seen == ["1 2", "3 4"] and again.seen == []
    for left, right in zip(fresh, kept, strict=True):
        assert left.keys() == {"double", "next"}
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert fresh[2]["double"].tolist() == [2.0, 4.0]


def test_what_does_not_fit_into_memory_is_read_from_disk(tmp_path: Path) -> None:
    one = 20  # an encoding has sixteen bytes
    cache, counting = EncodingCache(tmp_path, [nn.Linear(2, 2)], memory_bytes=one), _Counting()
    keys = cache.ensure(["1 2", "3 4"], str.encode, counting)
    assert [cache[key]["next"].tolist() for key in keys] == [[2.0, 3.0], [4.0, 5.0]]
    assert counting.seen == ["1 2", "3 4"]
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    assert cache[keys[0]]["next"].tolist() == [2.0, 3.0]
    with pytest.raises(LorimerError, match="removed"):
        cache[keys[1]]


def test_another_content_encoder_or_setting_is_another_key(tmp_path: Path) -> None:
    counting = _Counting()
    torch.manual_seed(1)
    other_encoder = nn.Linear(2, 2)
    for number, (item, encoder, more) in enumerate(
        [("1 2", None, ""), ("1 3", None, ""), ("1 2", other_encoder, ""), ("1 2", None, "clip_skip 1")]
    ):
        _encoded(_cache(tmp_path, encoder, more), [item], counting)
        assert len(counting.seen) == number + 1


@pytest.mark.parametrize("damage", ["cut", "empty", "swapped", "foreign"])
def test_a_broken_entry_is_made_anew(tmp_path: Path, damage: str) -> None:
    items = ["1 2", "3 4"]
    _encoded(_cache(tmp_path), items, _Counting())
    one, other = sorted(tmp_path.rglob("*.safetensors"))
    contents = {
        "cut": one.read_bytes()[:-3],
        "empty": b"",
        "swapped": other.read_bytes(),
        "foreign": b"hello" * 99,
    }
    one.write_bytes(contents[damage])
    counting = _Counting()
    encoded = _encoded(_cache(tmp_path), items, counting)
    assert len(counting.seen) == 1
    assert [each["double"].tolist() for each in encoded] == [[2.0, 4.0], [6.0, 8.0]]
    assert _encoded(_cache(tmp_path), items, counting) and len(counting.seen) == 1


def test_an_encoding_with_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LorimerError, match="NaN"):
        _encoded(_cache(tmp_path), ["nan"], _Counting())


def test_a_folder_that_cannot_be_written_is_named_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LorimerError, match=r"file/encodings(.|\n)*data\.cache"):
        _encoded(_cache(tmp_path / "file"), ["1"], _Counting())


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
