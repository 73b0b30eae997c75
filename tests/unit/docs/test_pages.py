"""What the pages say can be done as it stands there: links, commands, recipes, programs, both languages."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import typer
from torch import nn

import lorimer
from lorimer import registry
from lorimer.cli import app
from lorimer.train.recipe import load_recipe
from tests.unit.docs.pages import PAGES, ROOT, blocks, script


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page: Path) -> None:
    """Commands, options and arguments in the pages are those that the command line has."""
    group = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in blocks(page, "bash"):
        for line in block.without_comments.splitlines():
            program, *arguments = shlex.split(line)
            if program == "make":
                assert arguments[0] in targets, line
            elif program == "lorimer":
                command = group.commands[arguments[0]]  # type: ignore[attr-defined]
                command.make_context(arguments[0], arguments[1:])
            else:
                assert program in {"pip", "python"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_is_a_valid_recipe(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        file = tmp_path / "recipe.yaml"
        file.write_text(block.text, encoding="utf-8")
        load_recipe(file, environment={})


@pytest.mark.parametrize("name", ["README.md", "docs/library.md", "docs/methods.md", "docs/algebra.md"])
def test_the_programs_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page, one after the other, are one program that works."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(ROOT / name, "python"):
        source = "\n" * block.line + block.text  # so that a traceback shows the page's own line
        exec(compile(source, str(block.page), "exec"), names)


def test_the_method_in_the_architecture_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of a method of one's own is found, trains, merges, and comes back from a file."""
    source = next(block for block in blocks(ROOT / "docs" / "architecture.md", "python"))
    path = re.match(r"# (my_package/adapters/row_scale\.py)\n", source.text)
    assert path is not None
    file = tmp_path / path[1]
    file.parent.mkdir(parents=True)
    (tmp_path / "my_package" / "__init__.py").touch()
    (file.parent / "__init__.py").touch()
    file.write_text(source.text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registry.add_package("my_package")
    try:
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4)
        base = model(x)
        adapter = lorimer.attach(model, registry.get("method", "row-scale")())
        assert torch.equal(model(x), base)
        nn.init.normal_(next(adapter.parameters()))
        live = model(x)
        lorimer.save(adapter, tmp_path / "scale.safetensors", format="lorimer")
        lorimer.merge(model)
        torch.testing.assert_close(model(x), live)
        lorimer.unmerge(model)
        lorimer.detach(model)
        lorimer.load(model, tmp_path / "scale.safetensors")
        assert torch.equal(model(x), live) and not torch.equal(live, base)
    finally:
        registry.remove_package("my_package")
        for name in [name for name in sys.modules if name.startswith("my_package")]:
            del sys.modules[name]


def test_the_chinese_readme_is_in_step() -> None:
    """Same code, same links, same structure; only prose and comments are translated."""
    check_docs = script("check_docs")
    english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"

    def code(page: Path) -> list[tuple[str, str]]:
        return [(block.language, block.without_comments) for block in blocks(page)]

    def links(page: Path) -> list[str]:
        found = [target for _, target in check_docs.links(page.read_text(encoding="utf-8"))]
        return sorted(target for target in found if "README" not in target)

    def shape(page: Path) -> list[str]:
        """Headings by level, and table rows by their literal parts."""
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        rows = [line for line in prose.splitlines() if line.startswith(("#", "|", "- "))]
        return [" ".join([row.split(" ")[0], *re.findall(r"`[^`]+`", row)]) for row in rows]

    assert code(chinese) == code(english)
    assert links(chinese) == links(english)
    assert shape(chinese) == shape(english)


def test_the_readmes_name_each_other() -> None:
    assert "README.zh-CN.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "README.md" in (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


def test_files_named_as_proof_exist() -> None:
    """Tests and benchmarks that the README calls as witnesses are there."""
    named = re.findall(
        r"`((?:tests|benchmarks|scripts|examples)/[^`:]+)", PAGES[0].read_text(encoding="utf-8")
    )
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_dependency_has_its_line() -> None:
    from importlib import metadata

    from packaging.requirements import Requirement

    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    for text in metadata.requires("lorimer") or []:
        name = Requirement(text).name.lower()
        assert name in page, f"{name} has no line in docs/dependencies.md"
        assert f"\n{name}==" in pins or name in {"mlflow", "trackio"}, f"{name} is not pinned"


def test_every_link_leads_somewhere() -> None:
    check_docs = script("check_docs")
    pages = check_docs.markdown_files(ROOT)
    assert set(PAGES) <= set(pages)
    assert not [problem for page in pages for problem in check_docs.broken_links(page, ROOT)]


def test_broken_links_are_found(tmp_path: Path) -> None:
    check_docs = script("check_docs")
    (tmp_path / "other.md").write_text("# A *fine* heading: one\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#a-fine-heading-one) [b](https://example.org/x)\n\n[c](missing.md)\n\n"
        "![d](missing.png)\n\n[e](other.md#nowhere)\n\n[f](../outside.md)\n\n```\n[g](code.md)\n```\n",
        encoding="utf-8",
    )
    (tmp_path.parent / "outside.md").touch()
    problems = check_docs.broken_links(page, tmp_path)
    assert [problem.split(": ")[1] for problem in problems] == [
        "missing.md",
        "missing.png",
        "other.md#nowhere",
        "../outside.md",
    ]


def test_the_recipe_reference_is_in_step() -> None:
    reference = script("recipe_reference")
    assert reference.PAGE.read_text(encoding="utf-8") == reference.reference()
