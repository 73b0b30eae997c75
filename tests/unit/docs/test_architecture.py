"""The arrows of docs/images/architecture.svg hold: no import goes against them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lorimer

PACKAGE = Path(lorimer.__file__).parent

# part -> the parts its code may import, besides itself, errors and registry
MAY_IMPORT = {
    "kernels": set[str](),
    "adapters": {"kernels"},
    "layers": {"adapters", "kernels"},
    "attachment": {"adapters", "kernels", "layers"},
    "families": set[str](),
    "models": set[str](),
    "formats": {"adapters", "families", "kernels"},
    "ops": {"adapters", "attachment", "families", "formats", "kernels", "layers"},
    "tasks": {"adapters", "attachment", "families", "formats", "kernels", "layers", "models"},
    "train": {"adapters", "attachment", "families", "formats", "kernels", "layers", "ops", "tasks"},
    "cli": {"adapters", "attachment", "families", "formats", "kernels", "layers", "ops", "tasks", "train"},
    "errors": set[str](),
    "registry": set[str](),
}
EVERYWHERE = {"errors", "registry"}


def _imported_parts(file: Path) -> Iterator[str]:
    """The parts of lorimer that a file imports when it runs; imports for type checking alone do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "lorimer":
            yield from (alias.name for alias in node.names if (PACKAGE / alias.name).is_dir())
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lorimer."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lorimer."))


def test_every_import_follows_the_arrows() -> None:
    against = []
    for part, allowed in MAY_IMPORT.items():
        files = [PACKAGE / f"{part}.py"] if part in EVERYWHERE else sorted((PACKAGE / part).rglob("*.py"))
        assert files, part
        for file in files:
            wrong = set(_imported_parts(file)) - allowed - EVERYWHERE - {part}
            against += [f"{file.relative_to(PACKAGE)} imports {other}" for other in sorted(wrong)]
    assert not against


def test_every_part_is_in_the_table() -> None:
    parts = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts - {"demo_data"} <= MAY_IMPORT.keys()


def test_no_weight_file_is_opened_by_pickle_or_past_the_one_door() -> None:
    """No pickle anywhere, and nothing but formats/safe_io uses safetensors or torch's own files."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if (PACKAGE / "formats" / "safe_io") in file.parents:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names}
                module = (getattr(node, "module", None) or "").split(".")[0]
                assert not {"pickle", "safetensors", "joblib", "shelve"} & {*names, module}, file
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in {"torch.load", "torch.save"}, file
