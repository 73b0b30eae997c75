"""Folding into weights that are not in memory is merging, for every method."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

import lorimer
from lorimer import registry
from lorimer.ops.fold import Folding
from tests.unit.ops.adapters import network, trained


@pytest.mark.parametrize("name", registry.names("method"))
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_folding_layer_by_layer_is_merging(name: str, strength: float) -> None:
    method = registry.get("method", name)
    if not method.mergeable:
        pytest.skip("declares that it cannot be merged")
    options = {"block_size": 4} if name == "oft" else {"rank": 2} if method.ranked else {}
    state = trained(method(**options), targets=["linear", "conv"], dtype=torch.float32)
    model = network(torch.float32)
    read = {key: partial(copy.deepcopy, value.clone()) for key, value in model.state_dict().items()}
    folding = Folding(network(torch.float32).to("meta"), state, read, strength=strength)
    found = {key: folding.value(key) for key in read}
    lorimer.attach_state(model, state).strength = strength
    report = lorimer.merge(model, keep_original=False)
    assert {key for key, value in found.items() if value is not None} == set(report.merged) != set()
    for key in report.merged:
        torch.testing.assert_close(found[key], model.state_dict()[key], rtol=0, atol=1e-6)
