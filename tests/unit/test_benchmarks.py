"""The benchmarks measure what they say: on shapes so small that it takes seconds."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lorimer
from benchmarks.quality import images
from benchmarks.speed import _measure, _works, mixed, page, scale, step
from benchmarks.speed._one_training import one_training
from lorimer.tasks.image_classification import ImageClassification

TINY_LLAMA = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "vocab_size": 32,
    "rank": 2,
}
# What PEFT says about itself is none of our business here.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting the garbage of a whole test run, round by round, would be most of these tests' time."""
    monkeypatch.setattr(_measure, "gc", SimpleNamespace(collect=int, disable=int, enable=int))


@pytest.fixture
def work() -> _works.Work:
    return _works.llama(1, batch=2, tokens=4, **TINY_LLAMA)


def contenders(work: _works.Work, *variants: str) -> dict[str, nn.Module]:
    names = ["floor", *(f"{program} {variant}" for variant in variants for program in ("peft", "lorimer"))]
    return {name: step.contender(work, name) for name in names}


def test_a_step_is_measured_and_agrees_with_peft(
    work: _works.Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(step.WORKS, "llama", lambda: work)
    figures = ["seconds", "flops", "saved_bytes"]
    step.main(["llama", "--rounds", "1", "--results", str(tmp_path), "--figures", *figures])
    result = json.loads((tmp_path / "step-llama-1.json").read_text(encoding="utf-8"))
    measured = result["contenders"]
    programs = [f"{program} {variant}" for variant in step.VARIANTS for program in ("peft", "lorimer")]
    assert list(measured) == ["floor", *programs]
    assert all(contender.keys() >= set(figures) for contender in measured.values())
    assert measured["floor"]["over_floor"]["median"] == 1
    assert measured["floor"]["flops"] < measured["peft lora"]["flops"]
    assert measured["peft lora"]["saved_bytes"] < measured["peft dropout"]["saved_bytes"]
    assert max(result["agreement"].values()) < 1e-6
    assert all(name in page.section(result) for name in [*measured, result["hardware"]])


def test_contenders_that_disagree_are_not_measured(work: _works.Work) -> None:
    models = contenders(work, "lora")
    lorimer.attached(models["lorimer lora"])["default"].strength = 0.5
    with pytest.raises(SystemExit, match="differ"):
        step.agree(work, "lora", models)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (
            _works.resnet50,
            {"batch": 2, "pixels": 32, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]},
        ),
        (
            _works.unet,
            {
                "block_out_channels": (8,),
                "norm_num_groups": 4,
                "attention_head_dim": 2,
                "cross_attention_dim": 4,
                "layers_per_block": 1,
                "down_block_types": ("CrossAttnDownBlock2D",),
                "up_block_types": ("CrossAttnUpBlock2D",),
            },
        ),
    ],
    ids=["resnet50", "unet"],
)
def test_the_picture_models_are_the_same_work_for_both(build: Any, shape: dict[str, Any]) -> None:
    work = build(**shape)
    models = contenders(work, "lora")
    assert step.agree(work, "lora", models) < 1e-6
    assert step.compare(work, ["lora"], {"flops"}, rounds=1)["contenders"]["lorimer lora"]["flops"] > 0


def test_comparing_leaves_the_models_as_they_were(work: _works.Work) -> None:
    models = contenders(work, "lora", "dora")
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    modes = {name: model.training for name, model in models.items()}
    step.compare(work, ["lora"], {"saved_bytes"}, rounds=1)
    for variant in ("lora", "dora"):
        step.agree(work, variant, models)
    for name, model in models.items():
        after = model.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before[name].items())
        assert model.training is modes[name]


def test_contenders_share_the_frozen_weights(work: _works.Work) -> None:
    models = contenders(work, "lora")
    own = {parameter.data_ptr() for parameter in work.model.parameters()}
    for model in models.values():
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        assert {parameter.data_ptr() for parameter in frozen} == own


def test_the_life_of_an_adapter_is_measured(tmp_path: Path) -> None:
    scale.main(["--layers", "3", "--width", "8", "--rank", "2", "--rounds", "1", "--results", str(tmp_path)])
    result = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))
    assert list(result["seconds"]) == list(scale.ACTS)
    for act, seconds in result["seconds"].items():
        assert seconds.keys() == ({"peft", "lorimer"} if act == "switch" else {"bare", "peft", "lorimer"})
        assert min(seconds.values()) > 0
    assert "merge for good" in page.section(result)


def test_an_adapter_acts_in_every_life(tmp_path: Path) -> None:
    """Otherwise agreement would be that of bases."""
    base, x = _works.linears(3, 8), torch.randn(2, 8)
    stage = scale.Stage(base, x, tmp_path / "first", tmp_path / "second", 2, tmp_path)
    scale.write_peft_folder(stage, stage.first, seed=1)
    scale.write_peft_folder(stage, stage.second, seed=2)
    for life in (scale.life_in_peft(stage), scale.life_in_lorimer(stage)):
        assert len(life.outputs) == 3
        assert all(_measure.largest_difference(output, base(x)) > 1e-3 for output in life.outputs)


def test_mixed_batches_are_measured(tmp_path: Path) -> None:
    sizes = {"adapters": 3, "layers": 2, "width": 8, "tokens": 2, "rank": 2, "rounds": 1}
    arguments = [text for name, size in sizes.items() for text in (f"--{name}", str(size))]
    mixed.main([*arguments, "--results", str(tmp_path)])
    result = json.loads((tmp_path / "mixed.json").read_text(encoding="utf-8"))
    assert result["mixed_over_one"]["peft"]["median"] > 0
    assert result["agreement"]["one"] < 1e-5
    assert "mixed / one" in page.section(result)


def test_every_round_runs_everyone_once_beginning_with_another() -> None:
    order: list[str] = []
    results = _measure.interleave({name: partial(order.append, name) for name in "abc"}, rounds=3)
    assert order == list("abcbcacababc")
    assert {name: len(values) for name, values in results.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_taken_within_each_round() -> None:
    """A machine that is ten times slower in the second round changes nothing."""
    assert _measure.ratio([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == {"median": 2.0, "quartiles": [2.0, 3.0]}


class TestSavedBytes:
    def test_each_storage_counts_once_and_parameters_do_not(self) -> None:
        model, x = nn.Linear(4, 4), torch.randn(8, 4)
        weight_needs_x = _measure.count_saved_bytes(model, lambda: (model(x) + model(x[:4]).sum()).sum())
        assert weight_needs_x == 8 * 4 * 4

    def test_a_frozen_linear_saves_nothing(self) -> None:
        model, x = nn.Linear(4, 4).requires_grad_(False), torch.randn(8, 4, requires_grad=True)
        assert _measure.count_saved_bytes(model, lambda: model(x).sum()) == 0

    def test_what_is_dropped_on_the_way_does_not_count(self) -> None:
        model, x = nn.Linear(4, 4).requires_grad_(False), torch.randn(8, 4, requires_grad=True)

        def forward() -> torch.Tensor:
            x.exp().sum()  # keeps its result for a backward that never comes
            return model(x).sum()

        assert _measure.count_saved_bytes(model, forward) == 0

    def test_a_model_can_be_measured_again_and_again(self) -> None:
        """Nothing of the first time stays alive, and the backward still works beneath the hooks."""
        model, x = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), torch.randn(8, 4)
        losses: list[torch.Tensor] = []

        def forward() -> torch.Tensor:
            loss = model(x).square().sum()
            loss.backward()
            losses.append(loss.detach())
            return model(x).square().sum()

        first, second = (_measure.count_saved_bytes(model, forward) for _ in range(2))
        assert first == second > 0 and torch.equal(*losses)


def test_the_peak_is_seen() -> None:
    size = 64 * 2**20
    peak = _measure.count_peak_bytes(lambda: torch.ones(size, dtype=torch.uint8))
    assert 0.9 * size < peak < 1.5 * size  # the kernel counts pages roughly


def test_the_peak_of_a_contender_is_printed(
    work: _works.Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the process of one contender does; only the last line counts."""
    monkeypatch.setitem(step.WORKS, "llama", lambda: work)

    def in_this_process(command: list[str], **_: object) -> SimpleNamespace:
        step.main(command[3:])
        return SimpleNamespace(stdout=capsys.readouterr().out)

    monkeypatch.setattr(step.subprocess, "run", in_this_process)
    options = step.parser().parse_args(["llama", "--variants", "lora"])
    for name in ("floor", "peft lora", "lorimer lora"):
        assert step.peak_in_own_process(name, options) >= 0


def test_the_page_shows_the_results(tmp_path: Path) -> None:
    text = "a\n<!-- results: nothing -->\nold\n<!-- end -->\nb\n"
    assert page.filled(text, tmp_path) == text.replace("old", "Not measured yet.")
    held = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(held, _measure.RESULTS) == held, "run: python -m benchmarks.speed.page"
    named = {file.stem for file in _measure.RESULTS.glob("*.json") if file.stem.startswith("step")}
    assert all(f"<!-- results: {name} -->" in held for name in named)


def test_pictures_are_learned_in_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny_images import save_pictures, save_tiny_vit

    save_pictures(tmp_path / "stamps", 6)
    tiny = {"model": str(save_tiny_vit(tmp_path / "vit")), "adapter": {"rank": 2}}
    whole = images.recipe
    # In this process, not one each; what measures evaluation is taken off again.
    monkeypatch.setattr(ImageClassification, "evaluate", ImageClassification.evaluate)
    monkeypatch.setattr(
        images,
        "run",
        lambda work, name, options, threads: one_training(options.get("program", "lorimer"), work, options),
    )
    monkeypatch.setattr(images, "AT_ONCE", 1)
    monkeypatch.setattr(images, "recipe", lambda data: {**whole(data), **tiny})
    asked = ["stamps", "--images", str(tmp_path), "--folds", "1", "--seeds", "1", "--steps", "2"]
    images.main([*asked, "--rates", "in full=0.002", "--results", str(tmp_path)])
    result = json.loads((tmp_path / "images-stamps.json").read_text(encoding="utf-8"))
    found = result["contenders"]
    assert list(found) == [images.LINEAR, images.LORA, images.FULL]
    assert all(0 <= accuracy <= 1 for each in found.values() for accuracy in each["accuracy"])
    assert 0 < found[images.LORA]["written_mb"] <= found[images.FULL]["written_mb"]
