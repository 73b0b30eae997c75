"""Training language models: what recipes say is what is learned."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lorimer.cli import app
from lorimer.errors import DataError, RecipeError
from lorimer.train.engine import train
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.setup import build
from lorimer.train.step import micro_loss
from tests.tiny_texts import save_tiny_causal

TRAIN = {"steps": 12, "batch_size": 4, "checkpoint_every": 0, "evaluate_every": 12, "learning_rate": 0.03}
PREFERENCES = [{"prompt": f"{n}?", "chosen": "yes " * (n % 3 + 1), "rejected": "no"} for n in range(12)]
TEXTS = [{"prompt": f"{n} is ", "completion": "even" if n % 2 == 0 else "odd"} for n in range(12)]


def values(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "text-generation",
        "model": str(save_tiny_causal(folder / "model")),
        "data": {"path": str(path), "validation": {"fraction": 0.25}, "max_length": 64},
        "adapter": {"rank": 4},
        "train": TRAIN,
        "output": str(folder / "run"),
    }


def recipe(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> Recipe:
    return load_recipe(values(folder, rows), overrides, {})


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo"])
def test_preferences_are_learned(loss: str, tmp_path: Path) -> None:
    setup = build(recipe(tmp_path, PREFERENCES, f"objective.loss={loss}"))
    with torch.no_grad():
        before = setup.task.evaluate(setup.model.eval())
    if loss == "dpo":  # the adapter changes nothing yet, so model and reference agree
        assert before["validation_loss"] == pytest.approx(math.log(2.0), abs=1e-5)
    after = train(setup.recipe).metrics
    assert after["validation_loss"] < before["validation_loss"] and after["preferred"] == 1.0


def test_packed_and_padded_steps_are_the_same_step(tmp_path: Path) -> None:
    """Over the same texts, and however a step is cut."""
    losses = []
    for overrides in (
        ("data.packing=true",),
        ("data.packing=false",),
        ("data.packing=false", "train.batch_size=1"),
    ):
        setup = build(recipe(tmp_path, TEXTS, *overrides, "train.gradient_accumulation_steps=32"))
        total = 0.0
        for micro in setup.order.step(0):
            batch = setup.task.collate([setup.data[place] for place in micro.examples])
            total += micro_loss(setup, batch).item() * micro.share
        losses.append(total)
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo"])
def test_a_step_on_preferences_is_the_same_however_it_is_cut(loss: str, tmp_path: Path) -> None:
    losses = []
    for size in (1, 4, 9):
        setup = build(recipe(tmp_path, PREFERENCES, f"objective.loss={loss}", f"train.batch_size={size}"))
        for parameter in setup.parameters:
            torch.manual_seed(parameter.numel())
            torch.nn.init.normal_(parameter, std=0.2)
        pairs = [setup.data[place] for place in range(8)]
        parts = [pairs[begin : begin + size] for begin in range(0, 8, size)]
        losses.append(
            sum(micro_loss(setup, setup.task.collate(part)).item() * len(part) for part in parts) / 8
        )
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_long_plain_texts_are_learned_to_their_end(tmp_path: Path) -> None:
    rows = [{"text": chr(ord("a") + place) * 150} for place in range(4)]
    setup = build(recipe(tmp_path, rows, "data.validation.fraction=null"))
    ids = sorted(token for place in range(len(setup.data)) for token in setup.data[place].ids)
    assert len(ids) == 4 * 151 and max(len(setup.data[n].ids) for n in range(len(setup.data))) <= 64


def test_a_dataset_of_the_hub_is_judged_by_its_own_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[str] = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *names, split, **others: asked.append(split) or datasets.Dataset.from_list(TEXTS),
    )
    place = "someone/sums"
    build(
        recipe(
            tmp_path,
            TEXTS,
            f"data.path={place}",
            f"data.validation.path={place}",
            "data.validation.fraction=null",
        )
    )
    assert asked == ["train", "test"]


def test_choices_are_judged_by_what_they_say(tmp_path: Path) -> None:
    choices = tmp_path / "choices.jsonl"
    choices.write_text(json.dumps({"prompt": "2 is ", "choices": ["even", "odd"], "answer": "even"}))
    setup = build(recipe(tmp_path, TEXTS, f"data.choices={choices}"))
    ((rows, right),) = setup.task._choices  # type: ignore[attr-defined]
    assert right == 0 and [row.learned for row in rows] == [4, 3]
    for bad, message in (
        ("\n{broken", "line 2 is no JSON"),
        (
            "\n" + json.dumps({"prompt": "x" * 64, "choices": ["a", "b"], "answer": 0}),
            "question 2: is longer",
        ),
    ):
        choices.write_text(choices.read_text().splitlines()[0] + bad)
        with pytest.raises(DataError, match=message):
            build(recipe(tmp_path, TEXTS, f"data.choices={choices}"))


def test_conversations_that_the_template_refuses_are_skipped_and_told(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
    odd = {"messages": [{"role": "system", "content": "no"}, *rows[0]["messages"]]}
    wanted = recipe(tmp_path, [*rows, odd], "data.validation.fraction=null")
    config = tmp_path / "model" / "tokenizer_config.json"
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['content'] }}</s>{% endfor %}"
    )
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    setup = build(wanted)
    told = "\n".join(setup.task.describe(setup.model, setup.data))
    assert "1 skipped: the model's chat template refuses a conversation of system, user, assistant" in told


def test_previews_ask_as_was_learned(tmp_path: Path) -> None:
    setup = build(recipe(tmp_path, TEXTS, "preview.prompts=[2 is]", "preview.max_tokens=1"))
    seen: list[list[int]] = []
    forward = setup.model.forward
    setup.model.forward = lambda **told: seen.append(told["input_ids"][0].tolist()) or forward(**told)  # type: ignore[method-assign, func-returns-value]
    setup.task.preview(setup.model.eval(), tmp_path / "samples", 1)
    assert seen[0] == list(setup.task.tokenizer("2 is")["input_ids"])  # type: ignore[attr-defined]
    assert setup.task.metadata()["text_kind"] == "prompt-completion"


def test_a_text_that_is_learned_becomes_likely(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, TEXTS)
    setup = build(wanted)
    before = setup.task.evaluate(setup.model.eval())["validation_loss"]
    metrics = train(wanted).metrics
    assert metrics["validation_loss"] < before - 0.05  # its head is random and stays so
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["validation_loss"]))


def test_losses_that_do_not_go_with_the_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="dpo does not go with data read as prompt-completion"):
        build(recipe(tmp_path, TEXTS, "objective.loss=dpo"))
    with pytest.raises(RecipeError, match="cross-entropy does not go with data read as preference"):
        build(recipe(tmp_path, PREFERENCES, "objective.loss=cross-entropy"))


@pytest.mark.parametrize(
    ("rows", "override", "message"),
    [
        (PREFERENCES, "data.packing=true", r"data\.packing: preferences"),
        (
            PREFERENCES,
            "objective.loss=orpo objective.label_smoothing=0.1",
            r"objective\.label_smoothing: .*orpo",
        ),
        (TEXTS, "objective.label_smoothing=0.1", r"objective\.label_smoothing: .*cross-entropy"),
        (TEXTS, "data.validation.path=other.jsonl", r"data\.validation: .*not both"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    rows: list[dict[str, Any]], override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        build(recipe(tmp_path, rows, *override.split()))


def test_checking_shows_what_is_learned(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values(tmp_path, TEXTS)))
    result = CliRunner().invoke(app, ["check", str(path), "--show-tokens"])
    assert result.exit_code == 0, result.output
    assert "read as prompt-completion, 12 prompts" in result.output
    assert "is ⟦" in result.output.splitlines()[-1] and result.output.rstrip().endswith("|<|im_end|>⟧")


def test_the_vocabulary_head_is_adapted_only_where_it_is_named(tmp_path: Path) -> None:
    for targets, adapted in (("[all-linear]", False), ("[all-linear, lm_head]", True)):
        folder = tmp_path / str(adapted)
        folder.mkdir()
        wanted = values(folder, TEXTS) | {
            "model": str(save_tiny_causal(folder / "free", tie_word_embeddings=False))
        }
        setup = build(load_recipe(wanted, [f"adapter.targets={targets}"], {}))
        assert ("lm_head" in setup.adapter.layers) == adapted
        batch = setup.task.collate([setup.data[0]])
        micro_loss(setup, batch).backward()
        assert all(parameter.grad is not None for parameter in setup.parameters)
