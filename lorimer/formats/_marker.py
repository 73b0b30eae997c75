"""The header entry of files whose own format has no place for a method's config and facts like a title."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorimer import registry
from lorimer.adapters._state import AdapterState
from lorimer.errors import FileFormatError
from lorimer.formats._checks import checked_components, checked_config, checked_metadata, checked_method
from lorimer.formats.safe_io import parse_json

# Header entry of files whose own format has no place for a method's config and for facts such as the title.
MARKER = "lorimer_adapter"


def write_marker(state: AdapterState, fused: Mapping[str, Sequence[int]] | None = None) -> dict[str, str]:
    """The header entry that keeps method, config and facts in a format without a place for them; for layers
    that the file keeps as one, also the ranks of their parts."""
    facts = {
        "method": state.method,
        "config": state.config,
        "components": state.components,
        "metadata": portable(state.metadata),
    }
    if state.full:
        facts["full"] = sorted(state.full)
    if fused:
        facts["fused"] = {name: list(ranks) for name, ranks in fused.items()}
    return {MARKER: json.dumps(facts, ensure_ascii=False, sort_keys=True)}


@dataclasses.dataclass(frozen=True)
class Marker:
    """What `write_marker` kept; empty for a file of another program."""

    method: str | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    components: tuple[str, ...] = ()
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    full: tuple[str, ...] = ()
    fused: dict[str, list[int]] = dataclasses.field(default_factory=dict)


def read_marker(header: Mapping[str, str], where: str) -> Marker:
    """The inverse of `write_marker`, from a file's header entries.

    Raises:
        FileFormatError: the entry is there but malformed.
    """
    if MARKER not in header:
        return Marker()
    where = f"{where}: header entry {MARKER}"
    facts = parse_json(header[MARKER], where)
    known = {"method", "config", "components", "metadata"}
    if not isinstance(facts, dict) or not known <= facts.keys() <= known | {"full", "fused"}:
        raise FileFormatError(f"{where}: must hold method, config, components and metadata")
    full = facts.get("full", [])
    if not isinstance(full, list) or not all(isinstance(name, str) for name in full):
        raise FileFormatError(f"{where}: full must be a list of names")
    fused = facts.get("fused", {})
    if not isinstance(fused, dict) or not all(map(_are_ranks, fused.values())):
        raise FileFormatError(f"{where}: fused must map names to ranks")
    method = checked_method(facts["method"], where)
    config = checked_config(registry.get("method", method), facts["config"], where)
    components = checked_components(facts["components"], where)
    metadata = checked_metadata(facts["metadata"], where)
    return Marker(method, config, components, metadata, tuple(full), fused)


def _are_ranks(value: Any) -> bool:
    return isinstance(value, list) and all(type(rank) is int and rank >= 0 for rank in value)


_ABSOLUTE = re.compile(
    r"""(?<![^\s"'=(,;\[])               # at the start, or behind a space, quote, bracket, "=" or comma
        (?:file://)?(?:[A-Za-z]:[\\/]|\\\\|~[\\/]|/(?!/))
        (?:[^\s"'\\/,;)\]]+[\\/])*([^\s"'\\/,;)\]]+)""",
    re.VERBOSE,
)


def portable(metadata: Mapping[str, str]) -> dict[str, str]:
    """Facts without this machine's folders: of an absolute path, only its last part is kept."""
    return {key: _without_folders(value) for key, value in metadata.items()}


def _without_folders(text: str) -> str:
    if text.startswith("data:"):  # a thumbnail, whose base64 may look like a path
        return text
    if re.match(r"(file://)?([A-Za-z]:[\\/]|\\\\|~[\\/]|/(?!/))[^\n]*$", text):  # all of it, spaces included
        return re.split(r"[\\/]", text.rstrip("\\/"))[-1]
    return _ABSOLUTE.sub(r"\1", text)
