"""Choosing what to adapt."""

from __future__ import annotations

import re

import pytest
from torch import nn

import lorimer
from lorimer import LoRA
from lorimer.attachment.survey import survey
from lorimer.attachment.targets import Targets, by_pattern
from lorimer.attachment.targets import select as select_in
from lorimer.errors import TargetError
from tests.contracts.layer_cases import Experts


def select(model: nn.Module, targets: Targets, exclude: Targets = ()) -> dict[str, object]:
    return dict(select_in(survey(model), targets, exclude))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_v = nn.Linear(4, 4), nn.Linear(4, 4)
        self.to_out = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0.0)])
        self.norm_q = nn.LayerNorm(4)


class CrossAttnDownBlock(nn.Module):
    """Its class name holds "Attn" without being an attention module."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SelfAttention()])
        self.resnet = nn.Conv2d(4, 4, 3)
        self.time_proj = nn.Linear(4, 4)


def network() -> nn.Module:
    return nn.ModuleDict({"down": CrossAttnDownBlock(), "up": CrossAttnDownBlock(), "head": nn.Linear(4, 2)})


ATTENTION = [
    f"{block}.attentions.0.{leaf}" for block in ("down", "up") for leaf in ("to_q", "to_v", "to_out.0")
]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("head", ["head"]),
        ("down.resnet", ["down.resnet"]),
        ("to_q", [ATTENTION[0], ATTENTION[3]]),
        ("to_out.0", [ATTENTION[2], ATTENTION[5]]),
        ("re:up\\..*to_[qv]", ["up.attentions.0.to_q", "up.attentions.0.to_v"]),
        (re.compile(r"down\..*"), None),
        ("type:Conv2d", ["down.resnet", "up.resnet"]),
        (nn.Conv2d, ["down.resnet", "up.resnet"]),
        ("attention", ATTENTION),
        (["head", "to_q"], [ATTENTION[0], ATTENTION[3], "head"]),
        ("all-linear", sorted([*ATTENTION, "down.time_proj", "up.time_proj", "head"])),
        (
            "all-linear-conv",
            sorted([*ATTENTION, "down.time_proj", "up.time_proj", "head", "down.resnet", "up.resnet"]),
        ),
    ],
)
def test_targets_select(targets, expected) -> None:
    if expected is None:
        with pytest.raises(TargetError, match=r"layers that can be adapted"):
            select(network(), targets)  # a pattern that also names containers and norms
    else:
        assert sorted(select(network(), targets)) == sorted(expected)


def test_exclusions_take_away() -> None:
    chosen = select(network(), "all-linear", exclude=["attention", "head"])
    assert list(chosen) == ["down.time_proj", "up.time_proj"]
    assert list(select(network(), "all-linear", exclude=["up", "attentions"])) == ["down.time_proj", "head"]


@pytest.mark.parametrize(
    ("targets", "exclude", "message"),
    [
        ("to_qq", (), "Did you mean 'to_q'"),
        ("atention", (), "Did you mean 'attention'"),
        ("zzzzzzzz", (), "Names of layers that can be adapted: .*head"),
        ("type:Conv3", (), "Did you mean 'Conv2d'"),
        (nn.Bilinear, (), "Types present: .*Conv2d"),
        ("re:(", (), "no valid regular expression"),
        ("norm_q", (), "is a vector, which the method 'lora' cannot adapt; exclude it or train it in full"),
        ("attentions.0", (), "is a SelfAttention; layers that can be adapted: Linear"),
        ("head", "to_x", "exclude: target 'to_x' matches nothing"),
        (3, (), "a list of them, not 3"),
        ([3], (), "a module class, not 3"),
        ([LoRA], (), "a module class, not <class"),
        ("head", "head", "leave nothing to adapt"),
        ([], (), "leave nothing to adapt"),
    ],
)
def test_wrong_targets_are_refused_with_a_hint(targets, exclude, message) -> None:
    model = network()
    with pytest.raises(TargetError, match=message):
        lorimer.attach(model, LoRA(), targets, exclude=exclude)
    assert not lorimer.attached(model)


def test_a_module_stands_for_the_weights_that_it_reads_by_itself() -> None:
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "lstm": nn.LSTM(4, 4),
            "experts": Experts(),
            "prelu": nn.PReLU(4),
        }
    )
    attention = ["attention.in_proj_weight", "attention.out_proj"]
    experts = ["experts.up_proj", "experts.down_proj"]
    assert list(select(model, "attention")) == attention
    assert list(select(model, "all-linear")) == attention
    assert list(select(model, "attention.out_proj")) == attention[1:]
    assert list(select(model, "in_proj_weight")) == attention[:1]
    assert list(select(model, nn.LSTM)) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert list(select(model, "experts")) == experts
    assert list(select(model, "all-linear-experts")) == attention + experts
    assert list(select(model, "prelu")) == ["prelu"]


def test_tied_weights_are_refused_and_left_out_of_presets() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "fc": nn.Linear(4, 4), "head": nn.Linear(4, 5)})
    model["head"].weight = model["embed"].weight
    assert list(select(model, "all-linear")) == ["fc"]
    with pytest.raises(TargetError, match=r"shares its weight with 'embed'.*tied='together'.*tied='apart'"):
        select(model, "head")
    with pytest.raises(TargetError, match=r"'head\.weight' shares its weight with 'embed'"):
        lorimer.attach(model, LoRA(), "fc", full="head")


def test_ranks_and_alphas_by_pattern() -> None:
    model = network()
    adapter = lorimer.attach(
        model,
        LoRA(rank=4),
        "all-linear-conv",
        rank_pattern={"to_q": 2, "type:Conv2d": 1},
        alpha_pattern={"head": 16.0},
    )
    rows = {row.path: (row.rank, row.alpha) for row in adapter.report().layers}
    assert rows["down.attentions.0.to_q"] == (2, 2.0)
    assert rows["up.resnet"] == (1, 1.0)
    assert rows["head"] == (4, 16.0)
    assert rows["down.time_proj"] == (4, 4.0)
    with pytest.raises(TargetError, match="to_z"):
        lorimer.attach(network(), LoRA(), "all-linear", rank_pattern={"to_z": 2})
    with pytest.raises(TargetError, match="'resnet' names nothing that is adapted"):
        lorimer.attach(network(), LoRA(), "all-linear", rank_pattern={"resnet": 2})


def test_a_pattern_holds_for_what_it_names_and_all_inside() -> None:
    model = survey(network())
    paths = select_in(model, "all-linear")
    found = by_pattern(model, paths, {"up.time_proj": 1, "up": 2, "attention": 3})
    assert found == {
        path: 1 if path == "up.time_proj" else 2 if path.startswith("up.") else 3
        for path in paths
        if path.startswith("up.") or "attentions" in path
    }


def test_a_second_adapter_does_not_target_the_first() -> None:
    model = network()
    lorimer.attach(model, LoRA(), "all-linear", name="a")
    second = lorimer.attach(model, LoRA(), "all-linear", name="b")
    assert all("lorimer" not in path for path in second.layers)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "computes its weight"),
        (nn.LazyLinear(4), "no weight yet"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
    ],
)
def test_a_weight_that_cannot_be_adapted_is_refused_by_name_and_left_out_of_presets(layer, reason) -> None:
    model = nn.Sequential(layer, nn.Linear(4, 4))
    with pytest.raises(TargetError, match=reason):
        select(model, "0")
    assert list(select(model, "all-linear")) == ["1"]


def test_a_preset_that_finds_nothing_says_what_it_stands_for() -> None:
    with pytest.raises(TargetError, match="every Linear within the model"):
        select(nn.Linear(4, 4), "all-linear")
