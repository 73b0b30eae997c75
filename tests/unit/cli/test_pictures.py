"""`lorimer sample` and `lorimer merge` on a picture model of a few thousand random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import lorimer as library
from lorimer import LoRA
from lorimer.tasks._diffusion import load_diffusion
from tests.tiny_models import save_tiny_pipeline
from tests.unit.cli.running import lorimer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter off its start, with a trigger, as a file from elsewhere."""
    torch.manual_seed(1)
    attached = library.attach(
        load_diffusion(str(base)), LoRA(rank=2), targets="attention", exclude="re:text_encoder.*|vae.*"
    )
    for parameter in attached.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    file = tmp_path_factory.mktemp("adapter") / "style.safetensors"
    return library.save(
        attached, file, format="lorimer", metadata={"trigger": "inkstyle", "base_model": "elsewhere/x"}
    )


def test_sample_writes_a_picture_per_prompt_seed_and_strength_and_a_grid(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# what to draw\n\na Red Fox!\n", encoding="utf-8-sig")  # as editors on Windows do
    ran = lorimer(
        *("sample", adapter, "--model", base, "--prompt", "inkstyle 小鸟", "--prompts", prompts),
        *(
            "--seed",
            3,
            "--seed",
            4,
            "--strength",
            0,
            "--strength",
            1,
            "--steps",
            2,
            "--output",
            tmp_path / "out",
        ),
    )
    assert ran.code == 0, ran.err
    wanted = {
        f"{what}-seed{seed}-strength{strength}.png"
        for what in (
            "01-inkstyle-小鸟",
            "02-inkstyle-a-red-fox",
        )  # the trigger is put before a prompt that lacks it
        for seed in (3, 4)
        for strength in (0, 1)
    }
    assert {file.name for file in (tmp_path / "out").iterdir()} == wanted | {"grid.png"}
    assert all(str(tmp_path / "out" / name) in ran.out for name in wanted)
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 2 * 32 and grid.height > 4 * 32


def test_strength_zero_is_the_base_and_one_is_not(base: Path, adapter: Path, tmp_path: Path) -> None:
    shared = ("--model", base, "--prompt", "inkstyle cat", "--steps", 2, "--output", tmp_path)
    assert lorimer("sample", adapter, "--strength", 0, "--strength", 1, *shared).code == 0
    from lorimer.tasks import _diffusion

    expected = _diffusion.sample(load_diffusion(str(base)), ["inkstyle cat"], [0], steps=2)[0]
    with Image.open(tmp_path / "01-inkstyle-cat-seed0-strength0.png") as off:
        assert off.tobytes() == expected.tobytes()
    with Image.open(tmp_path / "01-inkstyle-cat-seed0-strength1.png") as on:
        assert on.tobytes() != expected.tobytes()


def test_sample_wants_a_prompt(adapter: Path) -> None:
    ran = lorimer("sample", adapter)
    assert ran.code == 2 and "--prompt" in ran.err


def test_prompts_that_are_no_text_are_refused(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\x00")
    ran = lorimer("sample", adapter, "--prompts", tmp_path / "prompts.txt")
    assert ran.code == 2 and "prompts.txt" in ran.err
    ran = lorimer("sample", adapter, "--prompts", tmp_path / "missing.txt")
    assert ran.code == 1 and "missing.txt" in ran.err


def test_a_file_from_elsewhere_does_not_choose_what_is_loaded(adapter: Path, tmp_path: Path) -> None:
    ran = lorimer("sample", adapter, "--prompt", "cat", "--output", tmp_path / "out")
    assert ran.code == 2 and "--model" in ran.err and "elsewhere/x" in ran.err
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_says_how_to_finish(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("task: text-to-image\n", encoding="utf-8")
    ran = lorimer("sample", tmp_path, "--prompt", "cat")
    assert ran.code == 2 and f"lorimer train --resume {tmp_path}" in ran.err


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_merged_folder_gives_what_the_live_adapter_gives(
    base: Path, adapter: Path, tmp_path: Path, strength: float
) -> None:
    ran = lorimer(
        "merge", adapter, "--model", base, "--strength", strength, "--output", tmp_path / "merged", "--json"
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == {
        "folder": str(tmp_path / "merged"),
        "base_model": str(base),
        "strength": strength,
        "merged": len(library.read(adapter).layers) if strength else 0,
        "notes": [],
    }
    live, merged = load_diffusion(str(base)), load_diffusion(str(tmp_path / "merged"))
    library.load(live, adapter).strength = strength
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        wanted, found = (model(latents, torch.tensor([500]), captions=["a cat"]) for model in (live, merged))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    index = json.loads((tmp_path / "merged" / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert not list((tmp_path / "merged").rglob("*.bin"))


def test_merge_never_overwrites(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine", encoding="utf-8")
    ran = lorimer("merge", adapter, "--model", base, "--output", tmp_path)
    assert ran.code == 2 and (tmp_path / "keep.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("command", [("sample", "--prompt", "cat"), ("merge", "--output", "merged")])
def test_without_the_picture_packages_it_says_which_extra_to_install(
    command: tuple[str, ...], adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    ran = lorimer(*command, adapter, "--model", base)
    assert ran.code == 4 and 'pip install "lorimer[pictures]"' in ran.err
