"""Put what `benchmarks/results` holds into the tables of docs/benchmarks.md, or check that it is there.

python -m benchmarks.speed.page            # write
python -m benchmarks.speed.page --check    # fail where the page differs from what would be written
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality import detection, images, sentiment
from benchmarks.speed import attention, full_size, int8, mixed, prefix, scale, step, time_to_quality
from benchmarks.speed._measure import RESULTS

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"

_PLACE = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def main() -> int:
    """Write the page or check it; 1 where the check fails."""
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old, RESULTS)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        print("docs/benchmarks.md is not in step with the results; run: python -m benchmarks.speed.page")
        return 1
    return 0


def filled(page: str, results: Path) -> str:
    """The page with every place for results holding the table of NAME.json, or saying that there is none."""

    def fill(place: re.Match[str]) -> str:
        file = results / f"{place['name']}.json"
        shown = (
            section(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else "Not measured yet."
        )
        return f"{place[1]}{shown}{place[3]}"

    return _PLACE.sub(fill, page)


def section(result: Mapping[str, Any]) -> str:
    """The result's table, and under it where and with what it was measured."""
    reports: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "scale": scale.report,
        "mixed": mixed.report,
        "step": step.report,
        "int8": int8.report,
        "full_size": full_size.report,
        "attention": attention.report,
        "time_to_quality": time_to_quality.report,
        "sentiment": sentiment.report,
        "prefix": prefix.report,
        "images": images.report,
        "detection": detection.report,
    }
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    conditions = f"{result['hardware']}; {result['threads']} threads; {result['rounds']} rounds; {versions}."
    return f"{reports[result['benchmark'].split('-')[0]](result)}\n\n{conditions}"


if __name__ == "__main__":
    sys.exit(main())
