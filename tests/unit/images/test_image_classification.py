"""Classifiers of pictures: every family trains, heads are kept, and the adapter's file alone will do."""

from __future__ import annotations

import csv
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import lorimer
from lorimer.errors import DataError, MissingDependencyError, RecipeError
from lorimer.tasks._classifier import heads_of
from lorimer.tasks._confusion import draw_confusion
from lorimer.tasks._fonts import font_for
from lorimer.tasks._image_classifier import ImageClassifier
from lorimer.tasks._image_models import _MAY_LACK, load_image_model, shown_image_model
from lorimer.tasks._image_preparation import Asked
from lorimer.tasks._label_losses import losses
from lorimer.tasks._mistakes import worst_mistakes
from lorimer.tasks._scores import top_accuracy
from lorimer.train.engine import train
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.setup import build
from tests.tiny_images import COLOURS, picture, save_pictures, save_tiny_vit

TRAIN = {"steps": 3, "batch_size": 2, "checkpoint_every": 0, "evaluate_every": 3, "learning_rate": 0.01}
MINE = f"{__name__}:network"


def network(labels: int) -> nn.Module:
    """A classifier of one's own."""
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 6, 8, 8), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6)
    )
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, labels))


def no_module(labels: int) -> int:
    return labels


def without_head(labels: int) -> nn.Module:
    return nn.Linear(3, labels + 1)


def recipe(folder: Path, *overrides: str, **values: Any) -> Recipe:
    if "data" not in values:
        values["data"] = {
            "path": str(save_pictures(folder / "pictures", 6)),
            "size": 32,
            "validation": {"fraction": 0.5},
        }
    whole = {
        "task": "image-classification",
        "model": MINE,
        "adapter": {"rank": 2},
        "train": TRAIN,
        "output": str(folder / "run"),
        **values,
    }
    return load_recipe(whole, overrides, {})


def table(folder: Path, *labels: Any) -> str:
    """A table of as many pictures as labels."""
    for number in range(len(labels)):
        picture(number).save(folder / f"{number}.png")
    rows = [{"image": f"{number}.png", "label": label} for number, label in enumerate(labels)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")


def save_tiny(family: str, folder: Path) -> str:
    """A tiny untrained classifier of transformers with its usual processor."""
    import transformers

    small: dict[str, dict[str, Any]] = {
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
        "ConvNext": {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
        "Swin": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        "Dinov2": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
            "patch_size": 8,
        },
        "DeiT": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
            "image_size": 32, "patch_size": 8,
        },
    }  # fmt: skip
    processors = {
        "ResNet": transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
        "ConvNext": transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
        "Dinov2": transformers.BitImageProcessor(
            size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
        ),
    }
    plain = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**small[family], num_labels=3)
    model = getattr(transformers, f"{family}ForImageClassification")(config)
    with torch.no_grad():  # DeiT's first token would be zero, and never move
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processors.get(family, plain).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["ResNet", "ConvNext", "Swin", "Dinov2", "DeiT"])
def test_every_family_of_transformers_trains_and_is_kept(family: str, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path / "model")
    data = {"path": str(save_pictures(tmp_path / "pictures", 4)), "validation": {"fraction": 0.5}}
    result = train(recipe(tmp_path, model=model, data=data))
    state = lorimer.read(result.adapter)
    assert any("classifier" in name for name in state.full) and state.layers
    told = ImageClassifier.load(result.adapter, model).predict([picture(5, COLOURS["red"])])[0]
    assert set(told["probabilities"]) == {"blue", "red"}


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        (["a", "b"] * 4, {"accuracy", "macro_f1", "calibration_error"}),
        ([["a"], ["a", "b"]] * 4, {"micro_f1", "macro_f1", "all_right"}),
        ([0.5, 2.25] * 4, {"mean_absolute_error", "pearson", "spearman"}),
    ],
)
def test_every_kind_trains_and_its_file_gives_the_same_answers(
    labels: list[Any], scores: set[str], tmp_path: Path
) -> None:
    wanted = recipe(
        tmp_path, data={"path": table(tmp_path, *labels), "size": 32, "validation": {"fraction": 0.5}}
    )
    result = train(wanted)
    assert {"validation_loss", *scores} <= result.metrics.keys()
    setup = build(wanted)
    lorimer.detach(setup.model)
    with torch.no_grad():
        for parameter in setup.model[-1].parameters():  # type: ignore[index]
            parameter.add_(1.0)
    lorimer.load(setup.model, result.adapter)
    with torch.no_grad():
        again = setup.task.evaluate(setup.model.eval())
    assert again == pytest.approx({name: result.metrics[name] for name in again}, abs=1e-6)
    metadata = lorimer.read(result.adapter).metadata
    assert json.loads(metadata["labels"]) == list(setup.task.labels.names)  # type: ignore[attr-defined]
    assert Asked.read(metadata["preparation"]) == Asked(32)


def test_colours_are_learned(tmp_path: Path) -> None:
    data = {"path": str(save_pictures(tmp_path / "p", 12)), "size": 32, "validation": {"fraction": 0.5}}
    steps = {**TRAIN, "steps": 60, "batch_size": 6, "learning_rate": 0.03}
    result = train(recipe(tmp_path, data=data, train=steps))
    assert result.metrics["accuracy"] == 1.0 and result.metrics["validation_loss"] < 0.3


def test_the_models_own_head_stays_where_the_labels_are_its_own() -> None:
    from lorimer.models.efficientnet_lite import imagenet_labels

    assert load_image_model("efficientnet-lite0", imagenet_labels(), Asked()).new == ()


def test_an_epoch_is_the_same_unless_pictures_are_varied(tmp_path: Path) -> None:
    plain = build(recipe(tmp_path)).data
    keys: tuple[str, ...] = plain.keys  # type: ignore[attr-defined]
    assert len(set(keys)) == len(plain) and keys == build(recipe(tmp_path)).data.keys  # type: ignore[arg-type, attr-defined]
    assert torch.equal(plain[0]["pixel_values"], plain[0]["pixel_values"])
    for change in ("data.size=24", "data.fit=pad", "data.mean=[0.5, 0.5, 0.5]"):
        other = build(recipe(tmp_path, change)).data.keys  # type: ignore[attr-defined]
        assert not set(other) & set(keys)
    for change in ("data.augment.flip=true", "objective.mixup=0.2"):
        assert build(recipe(tmp_path, change)).data.keys == ()  # type: ignore[attr-defined]


def test_balanced_classes_count_the_same_together(tmp_path: Path) -> None:
    data = {"path": table(tmp_path, *["a"] * 9, *["b"] * 3), "size": 32}
    examples: Any = build(recipe(tmp_path, "objective.class_weights=balanced", data=data)).data
    sums = {place: sum(each["weight"] for each in examples if each["label"] == place) for place in (0, 1)}
    assert sums[0] == pytest.approx(sums[1]) and sum(sums.values()) == pytest.approx(12)
    assert list(examples.weights) == [each["weight"] for each in examples]


def test_mixup_is_the_papers_formula(tmp_path: Path) -> None:
    setup = build(recipe(tmp_path, "objective.mixup=0.4", "objective.label_smoothing=0.1"))
    batch = setup.task.collate([setup.data[place] for place in range(4)])
    torch.manual_seed(3)
    found = setup.task.loss(setup.model, batch)
    torch.manual_seed(3)
    share = torch.distributions.Beta(0.4, 0.4).sample()
    order = torch.randperm(4)
    pixels = share * batch["pixel_values"] + (1 - share) * batch["pixel_values"][order]
    both = torch.stack(
        [nn.functional.one_hot(each, 2).float() for each in (batch["label"], batch["label"][order])]
    )
    target = share * both[0] + (1 - share) * both[1]
    wanted = nn.functional.cross_entropy(setup.model(pixels), target, label_smoothing=0.1)
    torch.testing.assert_close(found, wanted)


def test_smoothed_targets_of_several_labels_leave_each_its_share() -> None:
    logits, target = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    assert losses(logits, target, "multi", 0.2).item() == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_top_five() -> None:
    logits = torch.arange(8.0).repeat(2, 1)
    assert top_accuracy(logits, torch.tensor([3, 2]), 5) == 0.5


def test_previews_show_what_goes_wrong(tmp_path: Path) -> None:
    setup = build(recipe(tmp_path))
    with torch.no_grad():
        files = setup.task.preview(setup.model.eval(), tmp_path / "samples", 3)
    assert [file.name for file in files] == [
        "labels-000003.csv",
        "confusion-000003.png",
        "mistakes-000003.png",
    ]
    with files[0].open() as opened:
        rows = list(csv.DictReader(opened))
    assert [row["label"] for row in rows] == ["blue", "red"] and sum(int(row["count"]) for row in rows) == 6
    for file in files[1:]:
        with Image.open(file) as sheet:
            assert sheet.width > 200 and sheet.height > 200


def test_the_surest_mistakes_come_first() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 5.0]])
    found = worst_mistakes(logits, torch.tensor([1, 0, 1, 0]))
    assert [(each.place, each.right, each.predicted) for each in found] == [(3, 0, 1), (0, 1, 0), (1, 0, 1)]
    assert found[0].probability == pytest.approx(0.9933, abs=1e-4)


@pytest.mark.parametrize("count", [2, 10, 11, 30, 31, 60, 500])
def test_a_confusion_matrix_of_any_size_can_be_looked_at(count: int) -> None:
    sheet = draw_confusion(
        torch.eye(count, dtype=torch.long), [f"label number {n}" for n in range(count)], "run"
    )
    assert 200 < sheet.width < 1800 and 200 < sheet.height < 1800


def test_parts_beside_train_are_held_out(tmp_path: Path) -> None:
    save_pictures(tmp_path / "all" / "train", 4)
    save_pictures(tmp_path / "all" / "val", 2)
    setup = build(recipe(tmp_path, data={"path": str(tmp_path / "all"), "size": 32}))
    told = "\n".join(setup.task.describe(setup.model, setup.data))
    assert "held out: val: 4 pictures" in told
    assert "warning: 4 pictures are held out as well" in told  # both parts begin with the same pictures
    assert "4 to learn from, 4 held out" in told
    kept = build(recipe(tmp_path, "data.duplicates=ignore", data={"path": str(tmp_path / "all"), "size": 32}))
    assert len(kept.data) == 8  # type: ignore[arg-type]


def test_folds_are_chosen_by_the_recipe(tmp_path: Path) -> None:
    data = {"path": str(save_pictures(tmp_path / "p", 6)), "size": 32}
    held = []
    for fold in range(3):
        setup: Any = build(recipe(tmp_path, data={**data, "validation": {"folds": 3, "fold": fold}}))
        held += [each.name for each in setup.task.held_out.pictures]
    assert len(held) == len(set(held)) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"path": "p", "validation": {"fraction": 0.1, "folds": 5}}},
            "one of fraction, path and folds",
        ),
        ({"data": {"path": "p", "validation": {"folds": 5, "fold": 5}}}, "fold 5 is none of 5"),
        ({"data": {"path": "p", "validation": {"fold": 3}}}, "fold 3 of how many"),
        ({"model": {"path": "x"}}, "needs efficientnet-lite0, a folder or a hub name"),
        ({"model": "no.such.module:network"}, r"no\.such\.module cannot be imported"),
        ({"model": f"{__name__}:netwrok"}, "Did you mean 'network'"),
        ({"model": f"{__name__}:no_module"}, "returned a int, not an nn.Module"),
        ({"model": f"{__name__}:without_head"}, "without a layer of 2 outputs"),
    ],
)
def test_wrong_recipes_say_what_would_be_right(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        build(recipe(tmp_path, **changes))


def test_timm_is_asked_for_where_it_is_not_installed() -> None:
    with pytest.raises(MissingDependencyError, match="needs timm"):
        load_image_model("timm:resnet18", ("a", "b"), Asked())


def test_no_file_tells_a_path_of_this_machine(tmp_path: Path) -> None:
    assert shown_image_model(f"timm:local-dir:{tmp_path}/mine") == "timm:local-dir:mine"
    assert shown_image_model(str(save_tiny_vit(tmp_path / "vit"))) == "vit"
    assert shown_image_model("timm:resnet18") == "timm:resnet18"


def test_broken_pictures_stop_before_training(tmp_path: Path) -> None:
    save_pictures(tmp_path / "p", 3)
    (tmp_path / "p" / "red" / "1.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"red/1\.png: is broken"):
        build(recipe(tmp_path, data={"path": str(tmp_path / "p"), "size": 32}))


def unseeded(labels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, labels))


def with_a_gate(labels: int) -> nn.Module:
    torch.manual_seed(0)
    layers = {"flatten": nn.Flatten(), "head": nn.Linear(12, labels), "gate": nn.Linear(labels, labels)}
    return nn.Sequential(OrderedDict(layers))


def two_alike(labels: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, labels), nn.Linear(labels, labels))


def a_tuple(labels: int) -> nn.Module:
    torch.manual_seed(0)

    class Pair(nn.Linear):
        def forward(self, input: Any) -> Any:
            return super().forward(input.flatten(1)), 0

    return nn.Sequential(Pair(12, labels))


def test_the_head_of_a_function_is_known_by_its_name() -> None:
    found = load_image_model(f"{__name__}:with_a_gate", ("a", "b"), Asked(2))
    assert found.heads == ("head",) and found.new == ("head.weight", "head.bias")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("unseeded", "gives other weights each time"),
        ("two_alike", "2 layers of 2 outputs"),
        ("a_tuple", "gives a tuple for one picture"),
    ],
)
def test_functions_that_do_not_fit_are_refused(function: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_image_model(f"{__name__}:{function}", ("a", "b"), Asked(2))


def test_a_size_that_a_model_cannot_take_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot take pictures of 64 x 64 px"):
        load_image_model(str(save_tiny_vit(tmp_path)), ("a", "b"), Asked(64))


def test_a_head_for_as_many_other_labels_is_new(tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    name = str(save_tiny_vit(tmp_path, num_labels=2, id2label={0: "a", 1: "b"}))
    kept = ViTForImageClassification.from_pretrained(name).classifier.weight
    own, other = (load_image_model(name, labels, Asked()) for labels in (("a", "b"), ("c", "d")))
    assert own.new == () and torch.equal(own.model.get_parameter("classifier.weight"), kept)
    assert other.new == ("classifier.bias", "classifier.weight")
    assert not torch.equal(other.model.get_parameter("classifier.weight"), kept)


@pytest.mark.parametrize("family", ["CLIP", "Siglip", "MetaClip2", "HGNetV2", "PPLCNet", "SwiftFormer"])
def test_a_head_is_a_small_part_of_a_classifier(family: str) -> None:
    import transformers

    kind = getattr(transformers, f"{family}ForImageClassification")
    with torch.device("meta"):
        model = kind(kind.config_class())
    heads = heads_of(model, (), _MAY_LACK)
    own = sum(each.numel() for path in heads for each in model.get_submodule(path).parameters())
    assert 0 < own < 0.2 * sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(("split", "count"), [(None, 2), ("test", 4)])
def test_a_part_of_the_same_folder_is_held_out(split: str | None, count: int, tmp_path: Path) -> None:
    for part, each in (("train", 3), ("val", 1), ("test", 2)):
        save_pictures(tmp_path / "p" / part, each)
    data = {
        "path": str(tmp_path / "p"), "size": 32, "duplicates": "ignore", "validation": {"split": split},
    }  # fmt: skip
    setup: Any = build(recipe(tmp_path, data=data))
    assert len(setup.task.held_out) == count
    data["validation"] = {"path": str(tmp_path / "p" / "test")}
    setup = build(recipe(tmp_path, data=data))
    assert len(setup.task.held_out) == 4


def test_drawings_use_a_font_that_has_the_letters() -> None:
    shown = font_for(16, "кошка")
    if shown.getname() == font_for(16, "cat").getname():  # type: ignore[union-attr]
        pytest.skip("no font with Cyrillic letters is installed")
    drawn = {bytes(shown.getmask(letter)) for letter in "кошка"}
    assert len(drawn) == 4
