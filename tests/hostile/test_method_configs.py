"""What a file claims of a method, its config or what was trained in full is checked before it is believed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorimer
from lorimer import registry
from lorimer.errors import FileFormatError, LorimerError, UsageError
from lorimer.formats import safe_io
from tests.hostile.test_safetensors import bounded

FIELDS = {"oft": {"block_size": 4}, "vera": {"rank": 4}, "ia3": {}}
STRANGE: list[Any] = [None, True, 0, -1, 10**18, 10**400, 1.5, "", "x", [], [1], ["a"], [[]], {}, {"a": 1}]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Embedding(5, 8))


def written(method: str, path: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the header entry of an adapter of a method, in lorimer's format."""
    adapter = lorimer.attach(
        network(), lorimer.method(method, **FIELDS.get(method, {"rank": 2})), "0", full={"1": [0, 3]}
    )
    lorimer.save(adapter, path, format="lorimer")
    tensors, header = safe_io.read_safetensors(path)
    return tensors, {**json.loads(header["lorimer"]), **changes}


def rewrite(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    safe_io.write_safetensors(tensors, path, {"lorimer": json.dumps(facts)})


@pytest.mark.parametrize("method", [name for name in registry.names("method") if name != "full"])
def test_any_value_of_any_field(method: str, tmp_path: Path) -> None:
    """A file with it is refused by name, or its adapter runs."""
    path = tmp_path / "adapter.safetensors"
    tensors, facts = written(method, path)
    for field in registry.get("method", method).config_fields():
        for value in STRANGE:
            rewrite(path, tensors, {**facts, "config": {**facts["config"], field: value}})
            model = network()
            try:
                lorimer.load(model, path)
            except FileFormatError as error:
                assert str(path) in str(error)
            else:
                model[0](torch.ones(1, 8))


@pytest.mark.parametrize(
    ("method", "fields", "said"),
    [
        ("lora", {"rank": True}, "rank must be a whole number"),
        ("lora", {"alpha": "16"}, "alpha must be a finite number"),
        ("lora", {"rslora": "false"}, "rslora must be true or false, not 'false'"),
        ("lora", {"dropout": "0.1"}, "dropout must be a number"),
        ("lora", {"start": 1}, "start must be text"),
        ("vera", {"seed": 1.5}, "seed must be a whole number"),
        ("lokr", {"factor": True}, "factor must be a whole number"),
        ("dora", {"options": "start"}, "options must be a mapping"),
    ],
)
def test_fields_are_of_their_kind(method: str, fields: dict[str, Any], said: str) -> None:
    """Nobody gets rsLoRA from `rslora: "false"`, or a rank of one from `rank: true`."""
    with pytest.raises(UsageError, match=said):
        lorimer.method(method, **fields)


def test_a_series_without_end(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    tensors, facts = written("oft", path)
    rewrite(path, tensors, {**facts, "config": {**facts["config"], "neumann_terms": 10**9}})
    with pytest.raises(FileFormatError, match="neumann_terms must be"):
        lorimer.read(path)


def test_a_claimed_rank_takes_no_memory(tmp_path: Path) -> None:
    """VeRA's random matrices are as large as its rank says, and in no file."""
    path = tmp_path / "adapter.safetensors"
    tensors, facts = written("vera", path)
    facts["layers"]["0"]["rank"] = 16_384
    rewrite(path, tensors, facts)
    with bounded(), pytest.raises(FileFormatError, match="is not of rank 16384"):
        lorimer.read(path)


@pytest.mark.parametrize(
    ("rows", "value", "said"),
    [
        ([0, 10**30], torch.ones(2, 8), "rows must be indices from 0 to 4"),
        ([0, 5], torch.ones(2, 8), "rows must be indices from 0 to 4"),
        ([3, 3], torch.ones(2, 8), "index twice"),
        ([0, 1, 2], torch.ones(2, 8), "value has shape"),
        ([], torch.ones(0, 8), "rows must be"),
        ([0.0, 1.0], torch.ones(2, 8), "rows must be a list of indices"),
        (3, torch.ones(2, 8), "rows must be a list of indices"),
        ([0, 1], torch.ones(2, 8, dtype=torch.int64), "int64"),
        ([0, 1], torch.tensor(1.0), "value has shape"),
    ],
)
def test_rows(rows: Any, value: torch.Tensor, said: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    tensors, facts = written("lora", path, full={"1.weight": rows})
    rewrite(path, {**tensors, "1.weight": value}, facts)
    model = network()
    with pytest.raises(FileFormatError, match=said):
        lorimer.load(model, path)
    assert type(model[0]) is nn.Linear
    assert type(model[1]) is nn.Embedding


def test_a_weight_is_adapted_or_trained_in_full(tmp_path: Path) -> None:
    """Not both, of which one would be lost."""
    path = tmp_path / "adapter.safetensors"
    tensors, facts = written("lora", path)
    facts["full"]["0.weight"] = None
    rewrite(path, {**tensors, "0.weight": torch.ones(8, 8)}, facts)
    with pytest.raises(FileFormatError, match="'0' is both adapted and trained in full"):
        lorimer.load(network(), path)


@pytest.mark.parametrize("field", ["modules_to_save", "trainable_token_indices"])
@pytest.mark.parametrize("value", [*STRANGE, {"1": 5}, {"1": [0, 10**30]}, {"": [0, 3]}, ["../.."], [".*"]])
def test_what_peft_names_beside_an_adapter(field: str, value: Any, tmp_path: Path) -> None:
    """Refused in one line, or what was saved is what loads."""
    adapter = lorimer.attach(network(), lorimer.LoRA(rank=2), "0", full={"1": [0, 3]})
    lorimer.save(adapter, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), field: value}))
    try:
        loaded = lorimer.load(network(), tmp_path / "adapter")
    except LorimerError as error:
        assert re.search(r"\S", str(error))
    else:
        assert loaded.state().full["1.weight"].rows == (0, 3)


def test_a_config_holds_what_differs_from_the_defaults() -> None:
    """So that an adapter is the same out of a file that carries no config."""
    for method in registry.names("method"):
        assert lorimer.method(method).config() == {}
