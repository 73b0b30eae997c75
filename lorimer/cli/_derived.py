"""Writing an adapter that was made from others, and saying how true it is. Commands import this file when
they run, since it imports torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import lorimer
from lorimer import registry
from lorimer.errors import UsageError
from lorimer.ops._derived import Derived
from lorimer.ops.convert import precision, require_same
from lorimer.ops.files import in_precision, recognise


def finish(
    derived: Derived,
    output: Path,
    sources: Sequence[Path],
    *,
    to: str | None,
    dtype: str | None,
    as_json: bool,
) -> str:
    """Write the adapter, prove it by reading it back, and give what to print. The format is by default that
    of the first of `sources`.

    Raises:
        UsageError: the output is one of the sources.
        FileFormatError: the format cannot hold the adapter.
    """
    if any(output.resolve() == source.resolve() for source in sources):
        raise UsageError(f"{output}: output and source are the same; name another output")
    format = recognise(sources[0]).name if to is None else to
    state = derived.state if dtype is None else in_precision(derived.state, precision(dtype))
    lorimer.write(state, output, format=format)
    require_same(state, registry.get("format", format).read(output), str(output))
    if as_json:
        return json.dumps({"file": str(output), "format": format, **derived.as_dict()}, indent=2)
    return "\n".join([f"wrote {output}", *derived.lines()])
