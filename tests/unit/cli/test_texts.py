"""`lorimer chat` and `lorimer predict`, on runs of tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lorimer
from lorimer.cli import app
from lorimer.cli._merged_folder import adapted_base
from lorimer.errors import UsageError
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.tiny_texts import save_tiny_causal, save_tiny_encoder
from tests.tolerances import SAME_NETWORK_OUTPUT

TRAIN = {"steps": 3, "batch_size": 2, "checkpoint_every": 0, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talker")
    data = folder / "chats.jsonl"
    turns = [{"role": "user", "content": "so?"}, {"role": "assistant", "content": "yes"}]
    data.write_text("\n".join([json.dumps({"messages": turns})] * 4))
    values = {"task": "text-generation", "model": str(save_tiny_causal(folder / "model"))}
    return run_of(folder, values, data)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    data = folder / "rows.csv"
    data.write_text("text,label\n" + "".join(f"text {n},{'good' if n % 2 else 'bad'}\n" for n in range(6)))
    values = {"task": "text-classification", "model": str(save_tiny_encoder(folder / "model"))}
    return run_of(folder, values, data)


def run_of(folder: Path, values: dict[str, Any], data: Path) -> Path:
    more = {
        "data": {"path": str(data)},
        "adapter": {"rank": 2},
        "train": TRAIN,
        "output": str(folder / "run"),
    }
    return train(load_recipe({**values, **more}, [], {})).folder


def call(*arguments: object, typed: str | None = None) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments], input=typed)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def answers(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in call(*arguments, "--json").splitlines()]


def test_an_answer_follows_seed_and_strength(talker: Path) -> None:
    def said(*more: object) -> str:
        return str(answers("chat", talker, "--prompt", "so?", "--max-tokens", 12, *more)[0]["answer"])

    assert said() == said()
    assert said("--temperature", 0, "--strength", 0) != said("--temperature", 0)
    twice = said("--temperature", 0, "--strength", 0.25, "--adapter", f"{talker}=0.75")
    assert twice == said("--temperature", 0)


def test_a_conversation_in_the_terminal(talker: Path) -> None:
    typed = "so?\n/strength 0\nso?\n/reset\n/nonsense\n/strength much\nso?\n/quit\n"
    shown = call("chat", talker, "--temperature", 0, "--max-tokens", 4, typed=typed)
    assert shown.count("> ") == 8 and shown.count("/reset forgets") == 3
    call("chat", talker, typed="")  # the end of the input is an end


def test_labels_of_texts_and_files(judge: Path, tmp_path: Path) -> None:
    file = tmp_path / "more.csv"
    file.write_text("text\na much longer text than the others\nb\n")
    told = answers("predict", judge, "first", "--file", file)
    assert [each["text"] for each in told] == ["first", "a much longer text than the others", "b"]
    for each in told:
        assert sum(each["probabilities"].values()) == pytest.approx(1.0)
        assert each["labels"] == [max(each["probabilities"], key=each["probabilities"].get)]
    alone = answers("predict", judge, "a much longer text than the others")
    assert alone[0]["probabilities"] == pytest.approx(told[1]["probabilities"], abs=1e-5)
    assert call("predict", judge, "b").endswith("%\tb\n")


def test_files_answer_row_by_row_or_not_at_all(judge: Path, tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.jsonl", tmp_path / "empty.jsonl"
    broken.write_text('{"text": "a"}\n{broken\n{"text": "b"}\n')
    empty.write_text('{"text": "a"}\n{"text": " "}\n')
    for arguments, message in (
        (("--file", broken), "line 2 is no JSON"),
        (("--file", empty), "text 2 is empty"),
        (("",), "text 1 is empty"),
    ):
        with pytest.raises(lorimer.errors.LorimerError, match=message):
            call("predict", judge, *arguments)


def test_pairs_are_predicted_as_pairs(tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    lines = [f"a,text {n},{'good' if n % 2 else 'bad'}\n" for n in range(6)]
    data.write_text("text,second,label\n" + "".join(lines))
    values = {"task": "text-classification", "model": str(save_tiny_encoder(tmp_path / "model"))}
    wanted = {
        **values,
        "data": {"path": str(data), "pair": "second", "max_length": 32},
        "train": TRAIN,
        "output": str(tmp_path / "run"),
    }
    run = train(load_recipe(wanted, [], {})).folder
    told = answers("predict", run, "--file", data)
    assert len({each["probabilities"]["good"] for each in told}) == 6
    with pytest.raises(UsageError, match="learned pairs of texts"):
        call("predict", run, "a")


def test_strength_moves_from_the_base_with_the_trained_head(judge: Path) -> None:
    def share(strength: float) -> float:
        return float(answers("predict", judge, "text 1", "--strength", strength)[0]["probabilities"]["good"])

    assert share(0.0) == share(0.0) and share(0.5) == share(0.5)
    assert len({share(0.0), share(0.5), share(1.0)}) == 3


def test_the_adapters_file_alone_will_do_with_a_model(judge: Path) -> None:
    file = judge / "adapter" / "adapter.safetensors"
    model = judge.parent / "model"
    assert answers("predict", file, "b", "--model", model) == answers("predict", judge, "b")


def test_wrong_calls_say_what_would_be_right(judge: Path, talker: Path, tmp_path: Path) -> None:
    file = judge / "adapter" / "adapter.safetensors"
    for arguments, message in (
        (("predict", file, "b"), "say which base model to load with --model; the file names 'model'"),
        (("predict", judge), "say what to classify"),
        (("predict", talker, "b"), "is a run of the task text-generation"),
        (("predict", judge, "--file", __file__), "no known form of data"),
        (("chat", judge), "is a run of the task text-classification"),
        (("chat", talker, "--json"), "--json needs --prompt"),
        (("chat", tmp_path / "nothing"), "there is no such run or file"),
    ):
        with pytest.raises((UsageError, lorimer.errors.LorimerError), match=message):
            call(*arguments)


def test_a_merged_folder_is_the_model_with_its_adapter(talker: Path, judge: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for run, auto in ((talker, AutoModelForCausalLM), (judge, AutoModelForSequenceClassification)):
        output = tmp_path / run.parent.name
        told = json.loads(call("merge", run, "--output", output, "--json", "--strength", 0.5))
        assert told["merged"] > 0 and told["folder"] == str(output)
        merged = auto.from_pretrained(output).eval()
        ids = AutoTokenizer.from_pretrained(output)("so good?", return_tensors="pt").input_ids
        file = run / "adapter" / "adapter.safetensors"
        wanted = adapted_base(file, str(run.parent / "model"), 0.5).model(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-5, rtol=SAME_NETWORK_OUTPUT)
        plain = auto.from_pretrained(run.parent / "model").eval()(input_ids=ids).logits
        assert plain.shape != wanted.shape or not torch.allclose(plain, wanted, atol=1e-3)
        with pytest.raises(UsageError, match="exists already"):
            call("merge", run, "--output", output)


def test_a_merged_classifier_knows_its_labels(judge: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    call("merge", judge, "--output", tmp_path / "merged", "--dtype", "bfloat16")
    told = pipeline("text-classification", str(tmp_path / "merged"), top_k=None)(["text 1"])[0]
    ours = answers("predict", judge, "text 1")[0]["probabilities"]
    assert {each["label"]: each["score"] for each in told} == pytest.approx(ours, abs=2e-2)
