"""Write the tables in docs/from-kohya.md from those that `lorimer convert` follows, or check them.

python scripts/kohya_reference.py            # write
python scripts/kohya_reference.py --check    # fail where the page differs from what would be written
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from lorimer.train.from_kohya.network import ARGUMENTS, REFUSED_ARGUMENTS
from lorimer.train.from_kohya.options import LEFT_OUT, READ, REFUSED, SAME

PAGE = Path(__file__).resolve().parents[1] / "docs" / "from-kohya.md"
_BEGIN = "<!-- Written by scripts/kohya_reference.py from here to the end -->\n"


def main() -> int:
    """Write the page or check it; 1 where the check fails."""
    prose, mark, tables = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(prose + mark + reference(), encoding="utf-8")
        return 0
    if mark and tables == reference():
        print(f"{PAGE.name} is in step with what is translated")
        return 0
    print("docs/from-kohya.md is not in step; run: python scripts/kohya_reference.py")
    return 1


def reference() -> str:
    """Every table of the page."""
    translated = {**{name: (place, "") for name, place in SAME.items()}, **READ}
    return "\n".join(
        [
            "\n## Translated\n",
            _table(("kohya", "recipe", "remark"), _by_place(translated)),
            "## Translated from network_args\n",
            _table(("kohya, LyCORIS", "recipe", "remark"), _by_place(ARGUMENTS)),
            "## Left out, as nothing that is learned depends on it\n",
            _table(("kohya", "why"), _by_reason(LEFT_OUT)),
            "## Refused, as something else would be learned\n",
            _table(("kohya", "instead"), _by_reason(REFUSED)),
            _table(("network_args", "instead"), _by_reason(REFUSED_ARGUMENTS)),
        ]
    )


def _by_place(table: Mapping[str, tuple[str, str]]) -> Iterable[tuple[str, ...]]:
    """Rows in the order of the recipe's sections."""
    sections = ["model", "data", "objective", "adapter", "train", "preview", "output", ""]
    for name, (place, remark) in sorted(
        table.items(), key=lambda item: sections.index(item[1][0].split(".")[0])
    ):
        yield f"`{name}`", f"`{place}`" if place else "", remark


def _by_reason(table: Mapping[str, str]) -> Iterable[tuple[str, ...]]:
    """One row for each reason."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in table.items():
        names[reason].append(f"`{name}`")
    for reason, options in names.items():
        yield ", ".join(options), reason[:1].upper() + reason[1:] + "." if reason[0] != "`" else reason + "."


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
