"""Reading the project's own pages."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """One fenced block of code."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def without_comments(self) -> str:
        """The code alone; in the languages of these pages a comment begins at a # that follows a space."""
        lines = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in self.text.splitlines()]
        return "\n".join(line for line in lines if line)


def blocks(page: Path, language: str = "") -> list[Block]:
    """The fenced blocks of a page, of one language or of all."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    found = [
        Block(page, (token.map or [0])[0] + 1, token.info, token.content)
        for token in tokens
        if token.type == "fence"
    ]
    return [block for block in found if not language or block.language == language]


def script(name: str) -> ModuleType:
    """scripts/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
