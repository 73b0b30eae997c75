"""A page of pictures to open in a browser, from disk and without a network: prompts down, adapters across."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

_PAGE = Path(__file__).with_name("_gallery.html")


@dataclass(frozen=True)
class Heading:
    """What stands above a column: a name, and a fainter line beneath."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """One prompt and seed; `pictures` are paths from the page's folder with forward slashes, one a column."""

    prompt: str
    seed: int
    pictures: tuple[str, ...]


def gallery(title: str, facts: str, columns: Sequence[Heading], rows: Sequence[Row], plots: str = "") -> str:
    """The page as HTML.

    Args:
        title, facts: what it shows, and how it was drawn.
        plots: trusted HTML that goes above the pictures.
    """
    data = {"columns": [asdict(each) for each in columns], "rows": [asdict(row) for row in rows]}
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        facts=html.escape(facts),
        plots=plots,
        # A prompt may hold "</script>"; within JSON a "<" may be written as an escape.
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    )
