"""The running statistics of a frozen base do not move."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import LoRA


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)
    )
    model(torch.randn(8, 3, 6, 6))  # so that there is something to lose
    return model


def x() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 3


def statistics(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for name, buffer in model.named_buffers() if "lorimer" not in name]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) == 6 and all(map(torch.equal, left, right))


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    model(x()).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("full", [(), "norms", ["1"]])
def test_training_leaves_them_and_detaching_gives_the_norms_back(full) -> None:
    model = network()
    before, types = statistics(model), [type(layer) for layer in model]
    lorimer.attach(model, LoRA(rank=2), "0", full=full)
    train(model)
    train(copy.deepcopy(model))
    assert same(statistics(model), before)
    live = model(x())
    assert torch.equal(model.eval()(x()), live)  # trained as it is used
    lorimer.detach(model)
    assert [type(layer) for layer in model] == types
    model.train()(x())
    assert not same(statistics(model), before)  # a plain model again


def test_they_are_held_while_any_adapter_is_left_and_not_while_merged() -> None:
    model = network()
    lorimer.attach(model, LoRA(rank=2), "0", full="1", name="a")
    lorimer.attach(model, LoRA(rank=2), "0", name="b")
    lorimer.detach(model, "a")
    before = statistics(model)
    train(model)
    assert same(statistics(model), before)
    lorimer.merge(model)
    assert type(model[1]) is nn.BatchNorm2d and type(model[2]) is nn.InstanceNorm2d
    lorimer.unmerge(model)
    train(model)
    assert same(statistics(model), before)


def test_what_is_trained_in_full_comes_back_with_its_file(tmp_path) -> None:
    model = network()
    adapter = lorimer.attach(model, LoRA(rank=2), "0", full="norms")
    train(model)
    path = lorimer.save(adapter, tmp_path / "a.safetensors", format="lorimer")
    other = network()
    lorimer.load(other, path)
    assert torch.equal(other.eval()(x()), model.eval()(x()))


def test_copies_and_pickles_hold_them_too() -> None:
    model = network()
    lorimer.attach(model, LoRA(rank=2), "0", full="1")
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(saved, weights_only=False),
    ):
        before = statistics(twin)
        train(twin)
        assert same(statistics(twin), before)
        lorimer.detach(twin)
        assert [type(layer) for layer in twin] == [nn.Conv2d, nn.BatchNorm2d, nn.InstanceNorm2d]
