"""lorimer's own files of earlier versions load for ever."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import lorimer
from lorimer.formats import safe_io


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    facts = {
        "version": 1,
        "method": "lora",
        "config": {},
        "components": [],
        "metadata": {"title": "Old"},
        "layers": {"fc": {"rank": 2, "alpha": 4.0, "groups": 1}},
    }
    tensors = {"fc:A": torch.ones(2, 3), "fc:B": torch.ones(4, 2)}
    path = tmp_path / "adapter.safetensors"
    safe_io.write_safetensors(tensors, path, {"lorimer": json.dumps(facts)})
    layer = lorimer.read(path).layers["fc"]
    assert (layer.rank, layer.alpha, layer.kind, layer.stacked) == (2, 4.0, "layer", 0)
    assert torch.equal(layer.tensors["A"], torch.ones(2, 3))
