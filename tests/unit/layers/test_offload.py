"""Blocks that visit: the same numbers to the bit, and nothing left on the device."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lorimer
from lorimer import LoRA
from lorimer.layers.offload import Offload, blocks_of, move

CPU = torch.device("cpu")


class Block(nn.Module):
    """A residual block with a norm, a product and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(nn.functional.silu(self.wide(self.norm(x))))


class Tower(nn.Module):
    """Blocks between an entrance and an exit; out of order on purpose, as in a U-Net."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for number in (2, 0, 3, 1):
            block = self.blocks[number]
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.leave(x)


def adapted(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    adapter = lorimer.attach(model, LoRA(rank=2), "all-linear")
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.3)
    return model


def tower(checkpointed: bool) -> Tower:
    torch.manual_seed(0)
    return Tower(checkpointed).requires_grad_(False)


def gradients(model: nn.Module, offload: Offload | None, passes: int = 3) -> list[Tensor]:
    found = []
    for number in range(passes):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(number))
        if offload is None:
            loss = model(x).square().mean()
        else:
            with offload.sparing():
                loss = model(x).square().mean()
        model.zero_grad()
        loss.backward()
        parameters = lorimer.attached(model)["default"].parameters()
        found += [loss.detach(), *(each.grad.clone() for each in parameters)]  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_the_same_to_the_bit(checkpointed: bool) -> None:
    plain = adapted(tower(checkpointed))
    base = tower(checkpointed)
    offload = Offload(blocks_of(base)[1:], CPU)
    move(base, CPU, offload)
    visited = adapted(base)
    for left, right in zip(gradients(plain, None), gradients(visited, offload), strict=True):
        assert torch.equal(left, right) and left.abs().max() > 0


@pytest.mark.parametrize("checkpointed", [False, True])
def test_no_weight_stays_on_the_device(checkpointed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every copy counted, at most two blocks are there at a time, and none after the backward pass."""
    model = tower(checkpointed)
    offload = Offload(blocks_of(model), CPU)
    move(model, CPU, offload)
    adapted(model)
    most, send = [0], Offload._send
    alive: list[Any] = []

    def counted(self: Offload, number: int) -> Any:
        sent = send(self, number)
        alive.append(weakref.ref(sent.tensors[1].untyped_storage()))
        most[0] = max(most[0], sum(each() is not None for each in alive))
        return sent

    monkeypatch.setattr(Offload, "_send", counted)
    gradients(model, offload)
    assert most[0] <= 3  # in use, on its way, and one that a backward pass holds
    for own, home in zip(offload.weights, offload.home, strict=True):
        assert all(weight.data_ptr() == kept.data_ptr() for weight, kept in zip(own, home, strict=True))
    assert not offload._present


def test_the_next_block_is_sent_for_as_it_came_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tower(False)
    Offload(blocks_of(model), CPU)
    sent: list[int] = []
    send = Offload._send
    monkeypatch.setattr(Offload, "_send", lambda self, number: (sent.append(number), send(self, number))[1])
    with torch.no_grad():
        for _ in range(3):
            sent.clear()
            model(torch.randn(3, 4))
    assert sorted(sent) == [0, 1, 2, 3]  # each once: what was sent ahead was used


def test_an_error_inside_a_block_leaves_its_weights_at_home() -> None:
    model = tower(False)
    offload = Offload(blocks_of(model), CPU)
    with pytest.raises(RuntimeError):
        model.blocks[0](torch.randn(3, 5))
    assert model.blocks[0].wide.weight.data_ptr() == offload.home[0][2].data_ptr()


class Container(nn.Module):
    """As diffusers has them: what says `gradient_checkpointing` computes its parts anew."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.resnets, self.downsamplers = nn.ModuleList([Block()]), nn.ModuleList([nn.Linear(8, 8)])


class GradientCheckpointingLayer(nn.Module):
    """As transformers has them: what has this name computes itself anew."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing, self.inner = False, nn.ModuleList([nn.Linear(8, 8)])


def test_blocks_are_what_gradient_checkpointing_computes_anew() -> None:
    unet = nn.Module()
    unet.down_blocks = nn.ModuleList([Container(), Container()])
    unet.mid_block = Container()
    assert [type(each) for each in blocks_of(unet)] == [Block, nn.Linear] * 3
    language = nn.Module()
    language.layers = nn.ModuleList([GradientCheckpointingLayer(), GradientCheckpointingLayer()])
    assert blocks_of(language) == list(language.layers)
    assert blocks_of(Block()) == []
    assert blocks_of(copy.deepcopy(tower(False))) != []
