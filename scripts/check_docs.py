"""Check that every link in the project's Markdown leads somewhere: files, folders, and headings in files.

    python scripts/check_docs.py

Links into the web are not followed, as the check must pass without a network.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
_SKIPPED = {".venv", ".git", "node_modules", "runs", ".cache", ".pytest_cache", ".hypothesis"}


def main() -> int:
    """Print every broken link; 1 where there is one."""
    files = markdown_files(ROOT)
    problems = [problem for file in files for problem in broken_links(file, ROOT)]
    print("\n".join(problems) or f"{len(files)} pages, every link leads somewhere")
    return 1 if problems else 0


def markdown_files(root: Path) -> list[Path]:
    """Every Markdown file of the project."""
    return sorted(path for path in root.rglob("*.md") if not _SKIPPED & set(path.relative_to(root).parts))


def broken_links(file: Path, root: Path) -> list[str]:
    """One line for each link or picture of `file` that leads nowhere, or out of `root`."""
    problems = []
    for line, target in links(file.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        place = f"{file.relative_to(root)}:{line}: {target}"
        goal = (file.parent / unquote(path)).resolve() if path else file
        if not goal.exists():
            problems.append(f"{place}: there is no such file")
        elif not goal.is_relative_to(root):
            problems.append(f"{place}: leads out of the project")
        elif heading and unquote(heading) not in anchors(goal.read_text(encoding="utf-8")):
            problems.append(f"{place}: {goal.name} has no such heading")
    return problems


def links(text: str) -> Iterator[tuple[int, str]]:
    """(line number, target) of every link and picture in Markdown that stays in the project."""
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        line = (block.map or [0])[0] + 1
        for token in block.children or []:
            target = _target(token)
            if target and not re.match(r"[a-z][a-z+.-]*:", target):
                yield line, target
        if block.type == "html_block":
            yield from ((line, source) for source in re.findall(r'(?:src|href)="([^":]+)"', block.content))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown text."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    found: set[str] = set()
    for heading, content in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            found.add(re.sub(r"[^\w\- ]", "", content.content.lower()).replace(" ", "-"))
    return found


def _target(token: Token) -> str:
    attribute = {"link_open": "href", "image": "src"}.get(token.type)
    return str(token.attrs.get(attribute, "")) if attribute else ""


if __name__ == "__main__":
    sys.exit(main())
