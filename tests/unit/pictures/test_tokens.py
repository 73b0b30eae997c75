"""New tokens: learned beside the adapter, alone of all rows, and the same in every model that loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import lorimer
from lorimer import LoRA
from lorimer.errors import DataError, RecipeError, UsageError
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion, sample, save_diffusion
from lorimer.tasks._tokens import add_tokens, rows_to_train, spelled
from lorimer.tasks.text_to_image import TextToImage
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe

MakeTask = Callable[..., TextToImage]
TOKENS = 'data.tokens={"<me>": "ab"}'  # every letter is a token of the tiny tokenizer
SAID = "data.trigger=<me>"
PROMPT = "a <me> ball"


def _adapted(model: DiffusionModel) -> lorimer.AttachedAdapter:
    adapter = lorimer.attach(
        model, LoRA(rank=2), targets="re:unet.*to_q", full=dict(rows_to_train(model).items())
    )
    torch.manual_seed(5)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return adapter


def _picture(model: DiffusionModel, prompt: str = PROMPT) -> np.ndarray:
    return np.asarray(sample(model, [prompt], [1], steps=2)[0])


def test_a_token_starts_as_its_words_and_says_them(model: DiffusionModel) -> None:
    words = model.encode_texts(["a ab ball"])["hidden"]
    before = model.text_encoder.get_input_embeddings().weight.clone()
    add_tokens(model, {"<me>": "ab"})
    after = model.text_encoder.get_input_embeddings().weight
    rows = model.tokens["<me>"]["text_encoder"]
    assert len(rows) == 2 and len(after) == len(before) + 2
    assert torch.equal(after[: len(before)], before) and not after.requires_grad
    assert torch.equal(model.encode_texts([PROMPT])["hidden"], words)


def test_spelling_is_done_once() -> None:
    phrases = {"<me>": "<me> <me>_1"}
    assert spelled("a <me>, a <me>", phrases) == "a <me> <me>_1, a <me> <me>_1"
    assert spelled("a <me> <me>_1", phrases) == "a <me> <me>_1"
    assert spelled("\\1 <me>", {"<me>": r"\g<0>"}) == r"\1 \g<0>"


def test_pooling_looks_for_the_end_of_the_text_not_for_a_new_token(model: DiffusionModel) -> None:
    """As SDXL's encoders are configured, whose pooled output is at the highest number."""
    for module in model.text_encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2
    model.text_encoder.config.eos_token_id = 2
    ids = torch.tensor(model.tokenizer(["a ab ball"], padding="max_length").input_ids)
    before = model.text_encoder(ids).pooler_output
    add_tokens(model, {"<me>": "ab"})
    ids = torch.tensor(model.tokenizer([PROMPT], padding="max_length").input_ids)
    assert torch.equal(model.text_encoder(ids).pooler_output, before)


@pytest.mark.parametrize(
    ("words", "problem"),
    [({"<me>": ""}, "say in words"), ({"a</w>": "b"}, "knows this word already")],
)
def test_tokens_that_cannot_be_are_refused(
    model: DiffusionModel, words: dict[str, str], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        add_tokens(model, words)


@pytest.mark.parametrize("name", ["two words", "a.b", ""])
def test_names_that_files_or_tokenizers_cannot_hold_are_refused(make_task: MakeTask, name: str) -> None:
    with pytest.raises(RecipeError, match="must be one word"):
        make_task(f"data.tokens={json.dumps({name: 'a'})}")


def test_a_token_that_no_caption_says_is_refused(make_task: MakeTask) -> None:
    task = make_task(TOKENS)
    with pytest.raises(DataError, match="no caption says <me>"):
        task.data(task.model())


def test_gradients_reach_the_rows_of_tokens_and_the_adapter_alone(make_task: MakeTask) -> None:
    task = make_task(TOKENS, SAID, "objective.caption_dropout=0")
    model = task.model()
    data = task.data(model)
    assert "text_encoder" not in task.idle_parts(model)
    adapter = _adapted(model)
    task.loss(model, task.collate([data[0], data[1]])).backward()
    rows = [each for name, each in adapter.named_parameters() if name.endswith("token_embedding.value")]
    assert len(rows) == 1 and len(rows[0]) == 2
    assert (rows[0].grad.abs().sum(1) > 0).all()  # type: ignore[union-attr]
    ours = {id(each) for each in adapter.parameters()}
    assert all(each.grad is None for each in model.parameters() if id(each) not in ours)


@pytest.mark.parametrize("format", ["lorimer", "kohya"])
def test_one_file_gives_a_fresh_model_the_same_pictures(
    model: DiffusionModel, noise_model: Path, tmp_path: Path, format: str
) -> None:
    add_tokens(model, {"<you>": "c", "<me>": "ab"})
    adapter = _adapted(model)
    wanted = _picture(model)
    lorimer.save(adapter, tmp_path / "a.safetensors", format=format)
    fresh = load_diffusion(str(noise_model))
    assert not np.array_equal(_picture(fresh), wanted)
    loaded = lorimer.load(fresh, tmp_path / "a.safetensors")
    assert np.array_equal(_picture(fresh), wanted)
    with lorimer.disabled(fresh), lorimer.disabled(model):
        assert np.array_equal(_picture(fresh), _picture(model))
    again = loaded.state()
    assert again.metadata["tokens"] == adapter.state().metadata["tokens"]


def test_tokens_of_two_files_live_side_by_side(
    model: DiffusionModel, noise_model: Path, tmp_path: Path
) -> None:
    """Each was trained alone, so both believe that the same rows are theirs."""
    other = load_diffusion(str(noise_model))
    for each, tokens, file in ((model, {"<me>": "ab"}, "me"), (other, {"<you>": "c"}, "you")):
        add_tokens(each, tokens)
        lorimer.save(_adapted(each), tmp_path / f"{file}.safetensors", format="lorimer")
    fresh = load_diffusion(str(noise_model))
    lorimer.load(fresh, tmp_path / "me.safetensors", name="me")
    lorimer.load(fresh, tmp_path / "you.safetensors", name="you")
    assert fresh.tokens["<me>"] != fresh.tokens["<you>"]
    with lorimer.enabled(fresh, "me"):
        assert np.array_equal(_picture(fresh), _picture(model))
    with lorimer.enabled(fresh, "you"):
        assert np.array_equal(_picture(fresh, "a <you>"), _picture(other, "a <you>"))


def test_another_token_of_that_name_is_refused(
    model: DiffusionModel, noise_model: Path, tmp_path: Path
) -> None:
    add_tokens(model, {"<me>": "ab"})
    lorimer.save(_adapted(model), tmp_path / "me.safetensors", format="lorimer")
    other = load_diffusion(str(noise_model))
    add_tokens(other, {"<me>": "abc"})
    with pytest.raises(UsageError, match="another token called '<me>'"):
        lorimer.load(other, tmp_path / "me.safetensors")


def test_merged_and_saved_they_are_the_models_own(model: DiffusionModel, tmp_path: Path) -> None:
    """diffusers' own pipeline then reads the token, several rows of it too."""
    from diffusers import StableDiffusionPipeline

    add_tokens(model, {"<me>": "ab"})
    _adapted(model)
    lorimer.merge(model)
    wanted = model.encode_texts([PROMPT])["hidden"]
    save_diffusion(model, tmp_path / "merged")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert type(pipeline.tokenizer).__name__ == "CLIPTokenizer"
    given, _ = pipeline.encode_prompt([PROMPT], "cpu", 1, False)
    assert torch.equal(given, wanted)


def test_a_run_learns_a_token_resumes_its_file_and_leaves_all_other_rows(
    noise_model: Path, balls: Path, tmp_path: Path
) -> None:
    values = {
        "task": "text-to-image",
        "model": str(noise_model),
        "data": {"path": str(balls), "cache": str(tmp_path / "cache"), "tokens": {"<me>": "ab"}},
        "adapter": {"rank": 2, "targets": "attention", "learning_rate_pattern": {"token_embedding": 0.05}},
        "train": {"steps": 4, "batch_size": 2},
        "output": str(tmp_path / "run"),
    }
    result = train(load_recipe(values, [SAID], environment={}))  # which checks that the base is as before
    for file in (result.adapter, result.folder / "adapter" / "run.safetensors"):
        state = lorimer.read(file)
        (name, parameter) = next(iter(state.full.items()))
        assert name.endswith("token_embedding.weight") and parameter.rows is not None
        assert json.loads(state.metadata["tokens"])["<me>"]["text_encoder"] == list(parameter.rows)
    fresh = load_diffusion(str(noise_model))
    start = fresh.text_encoder.get_input_embeddings().weight[
        fresh.tokenizer("ab", add_special_tokens=False).input_ids
    ]
    assert ((parameter.value - start).abs().amax(1) > 0.01).all()
