"""Which adapters act, how strongly, and on which rows of a batch."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lorimer
from lorimer import LoRA, StrengthSchedule
from lorimer.adapters.dora import DoRA
from lorimer.errors import StateError, TargetError, UsageError
from lorimer.layers.sites import sites


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.conv = nn.Linear(8, 8), nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.proj(x)))


def network() -> nn.ModuleDict:
    """down -> mid -> up, each on (rows, 3, 8), with two adapters."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name in ("down", "mid", "up"):
        model.add_module(name, Block())
    lorimer.attach(model, LoRA(rank=2, alpha=3), "all-linear-conv", name="style")
    lorimer.attach(model, DoRA(rank=3), "proj", name="face")
    for adapter in lorimer.attached(model).values():
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


def strengths(model: nn.Module, name: str = "style") -> dict[str, float]:
    return {
        path: site.slots.strengths[name] for path, site in sites(model).items() if name in site.slots.names()
    }


def test_a_strength_may_differ_by_pattern() -> None:
    model = network()
    before = strengths(model)
    with lorimer.strength(model, {"style": {"down.proj": 0.25, "down": 0.5, "re:.*mid.*": 0.0}}):
        assert strengths(model) == {
            "down.proj": 0.25,
            "down.conv": 0.5,
            "mid.proj": 0.0,
            "mid.conv": 0.0,
            "up.proj": 1.0,
            "up.conv": 1.0,
        }
        assert set(strengths(model, "face").values()) == {1.0}
    assert strengths(model) == before


def test_a_pattern_that_names_nothing_adapted_is_refused_before_anything_is_set() -> None:
    model = network()
    for wanted in ({"down": 0.5, "nowhere": 1.0}, {"down": 0.5, "conv": 2.0}):
        with pytest.raises(TargetError), lorimer.strength(model, {"face": wanted}):
            pass
        assert set(strengths(model, "face").values()) == {1.0}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "0.5", None])
def test_a_strength_is_a_finite_number(wrong) -> None:
    model = network()
    for value in (wrong, {"style": wrong}, {"style": {"down": wrong}}):
        with pytest.raises(UsageError, match="finite number"), lorimer.strength(model, value):
            pass
    with pytest.raises(UsageError, match="finite number"):
        lorimer.attached(model)["style"].strength = wrong
    with pytest.raises(UsageError):
        StrengthSchedule([(0.0, 1.0), (1.0, wrong)])
    assert set(strengths(model).values()) == {1.0}


def test_a_schedule_moves_strengths_on() -> None:
    model, x = network(), torch.randn(2, 3, 8)
    schedule = StrengthSchedule([(0.0, 1.0), (0.5, 0.0)])
    with lorimer.strength(model, {"style": {"down": schedule, "up": 0.5}}) as move:
        assert strengths(model)["down.proj"] == 1.0
        move(0.25)
        moved = model(x)
        assert strengths(model)["down.proj"] == 0.5 and strengths(model)["up.proj"] == 0.5
        move(0.9)
        assert strengths(model)["down.conv"] == 0.0
        with pytest.raises(UsageError, match="progress"):
            move(1.1)
    with lorimer.strength(model, {"style": {"down": 0.5, "up": 0.5}}):
        assert torch.equal(model(x), moved)
    assert set(strengths(model).values()) == {1.0}


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-4, 4)), min_size=1, max_size=5, unique_by=lambda p: p[0]),
    st.floats(0, 1),
)
def test_a_schedule_passes_through_its_points_and_between_them(points, progress) -> None:
    points = sorted(points)
    schedule = StrengthSchedule(points)
    for at, strength in points:
        assert schedule.at(at) == pytest.approx(strength)
    values = [strength for _, strength in points]
    assert min(values) - 1e-9 <= schedule.at(progress) <= max(values) + 1e-9
    if progress <= points[0][0]:
        assert schedule.at(progress) == values[0]
    if progress >= points[-1][0]:
        assert schedule.at(progress) == pytest.approx(values[-1])


def test_a_schedule_is_linear_between_its_points() -> None:
    schedule = StrengthSchedule([(0.2, 1.0), (0.6, 0.0), (1.0, 2.0)])
    assert [schedule.at(p) for p in (0.0, 0.2, 0.3, 0.6, 0.8, 1.0)] == pytest.approx([1, 1, 0.75, 0, 1, 2])


@pytest.mark.parametrize(
    "points", [[], [(0.5, 1.0), (0.5, 0.0)], [(0.6, 1.0), (0.2, 0.0)], [(1.2, 1)], [0.5]]
)
def test_an_impossible_schedule_is_refused(points) -> None:
    with pytest.raises(UsageError):
        StrengthSchedule(points)


def test_a_mixed_batch_is_its_rows_alone_through_a_whole_model() -> None:
    model, x = network(), torch.randn(6, 3, 8)
    names = ["style", None, "face", "style", "face", None]
    with lorimer.strength(model, {"style": {"down": 0.5}, "face": -1.0}):
        with lorimer.rows(model, names):
            mixed = model(x)
        for row, name in enumerate(names):
            with lorimer.enabled(model, *([name] if name else [])):
                torch.testing.assert_close(mixed[row], model(x[row : row + 1])[0])
    assert not torch.equal(mixed[1], model(x)[1])


def test_rows_without_an_adapter_are_the_base_beside_a_broken_one() -> None:
    model, x = network(), torch.randn(2, 3, 8)
    lorimer.detach(model, "face")
    with torch.no_grad():
        next(lorimer.attached(model)["style"].parameters()).fill_(float("nan"))
    with lorimer.disabled(model):
        base = model(x)
    with lorimer.rows(model, ["style", None]):
        mixed = model(x)
    assert torch.isnan(mixed[0]).all()
    torch.testing.assert_close(mixed[1], base[1])


def test_different_ranks_are_mixed_in_one_product(monkeypatch) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(4, 2, 6)
    for rank, name in ((1, "a"), (4, "b")):
        for parameter in lorimer.attach(model, LoRA(rank=rank), name=name).parameters():
            nn.init.normal_(parameter)
    calls = []
    monkeypatch.setattr("lorimer.layers.rows._one_by_one", lambda *arguments: calls.append(arguments))
    names = ["b", "a", None, "b"]
    with lorimer.rows(model, names):
        mixed = model(x)
    assert not calls
    for row, name in enumerate(names):
        with lorimer.enabled(model, *([name] if name else [])):
            torch.testing.assert_close(mixed[row], model(x[row]))


def test_training_on_a_mixed_batch_reaches_each_adapter_with_its_own_rows_alone() -> None:
    model, x = network(), torch.randn(4, 3, 8)
    with lorimer.rows(model, ["style", "style", None, None]):
        model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in lorimer.attached(model)["style"].parameters())
    for parameter in lorimer.attached(model)["face"].parameters():
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize(("names", "x"), [(["style"] * 3, (2, 3, 8)), (["style", None], (2, 8))])
def test_a_wrong_number_of_rows_is_an_error(names, x) -> None:
    model = network()
    live = copy.deepcopy(model)
    with lorimer.rows(model, names), pytest.raises(UsageError, match="first axis must count the rows"):
        model(torch.randn(x) if len(x) == 3 else torch.randn(3, 8))
    x = torch.randn(2, 3, 8)
    assert torch.equal(model(x), live(x))


def test_impossible_rows_are_refused_before_anything_runs() -> None:
    model = network()
    with pytest.raises(TargetError, match="'nobody'"), lorimer.rows(model, ["style", "nobody"]):
        pass
    for names in ([], "style"):
        with pytest.raises(UsageError, match="list of names"), lorimer.rows(model, names):
            pass
    lorimer.merge(model)
    with pytest.raises(StateError, match="unmerge"), lorimer.rows(model, ["style", None]):
        pass
    attention = nn.MultiheadAttention(8, 2)
    lorimer.attach(attention, LoRA(rank=2), "all-linear", name="a")
    with pytest.raises(UsageError, match="read for all rows"), lorimer.rows(attention, ["a", None]):
        pass


def test_an_encoder_that_torch_would_run_in_one_piece_mixes_rows() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(), torch.randn(2, 4, 8)
    for parameter in lorimer.attach(model, LoRA(rank=2), ["linear1", "linear2"], name="a").parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        live = model(x)
        with lorimer.disabled(model):
            base = model(x)
            with lorimer.rows(model, [None, "a"]):
                mixed = model(x)
    torch.testing.assert_close(mixed, torch.stack([base[0], live[1]]))
