"""A new method, format or task is one new file and no edit elsewhere.

One of each is dropped into a package of its own; the same contracts hold it as hold ours, and a recipe
trains the new method on the new task.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lorimer
from lorimer import registry
from lorimer.errors import FileFormatError, RecipeError
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.contracts import test_adapters, test_formats, test_tasks
from tests.contracts.format_cases import adapter_state
from tests.contracts.method_cases import make

METHOD = '''
"""Scales the rows of a weight: W' = (1 + gain · s) W, with s (out, 1) starting at zero."""

from dataclasses import dataclass

from torch import nn

from lorimer.adapters._base import Adapter, Method


@dataclass(frozen=True)
class RowScale(Method):
    name = "row-scale"
    tensors = {"s": {"peft": "row_scale.weight", "kohya": "row_scale"}}

    gain: float = 1.0

    def build(self, spec):
        return RowScaleAdapter(self, spec)


class RowScaleAdapter(Adapter):
    def __init__(self, method, spec):
        super().__init__()
        self.method = method
        self.gain = method.gain
        self.s = spec.empty(spec.matrix_shape[0], 1)

    def start(self, weight):
        nn.init.zeros_(self.s)

    def adapt(self, weight):
        return weight * (1 + self.gain * self.s)
'''

FORMAT = '''
"""One safetensors file of its own: tensors "upright|layer|name", facts in the header."""

import json

from lorimer import registry
from lorimer.adapters._state import AdapterState
from lorimer.errors import FileFormatError
from lorimer.formats import _checks, _dialects, _marker
from lorimer.formats._base import Format
from lorimer.formats.safe_io import parse_json, read_safetensors_header, write_safetensors


class Upright(Format):
    name = "upright"
    description = "for a test"

    @staticmethod
    def detect(path):
        try:
            return path.is_file() and "upright" in read_safetensors_header(path).metadata
        except FileFormatError:
            return False

    @staticmethod
    def read(path):
        tensors, header = _checks.read_adapter_tensors(path)
        facts = parse_json(header["upright"], str(path))
        method = registry.get("method", facts["method"])
        layers = {layer: {} for layer in facts["layers"]}
        strangers = []
        for key, tensor in tensors.items():
            layer, _, name = key.removeprefix("upright|").rpartition("|")
            if layer in layers:
                layers[layer][name] = tensor
            else:
                strangers.append(key)
        lacking = [
            layer for layer, own in layers.items() if not method.required(facts["config"]) <= own.keys()
        ]
        if strangers or lacking:
            raise FileFormatError(f"{path}: not understood: {_checks.shown([*strangers, *lacking])}")
        made = {
            layer: _dialects.make_layer(method, own, str(path), rank=facts["layers"][layer][0],
                                     alpha=facts["layers"][layer][1])
            for layer, own in layers.items()
        }
        for layer, own in made.items():
            own.groups = facts["layers"][layer][2]
        components = tuple(facts["components"])
        return AdapterState(facts["method"], made, facts["config"], components, facts["metadata"])

    @staticmethod
    def write(state, path):
        _checks.require_suffix(path)
        facts = {
            "method": state.method,
            "config": state.config,
            "components": state.components,
            "metadata": _marker.portable(state.metadata),
            "layers": {layer: [own.rank, own.alpha, own.groups] for layer, own in state.layers.items()},
        }
        tensors = {
            f"upright|{layer}|{name}": tensor
            for layer, own in state.layers.items()
            for name, tensor in own.tensors.items()
        }
        write_safetensors(tensors, path, {"upright": json.dumps(facts)})
'''

TASK = '''
"""Fits a line, for a test."""

import torch
from torch import nn

from lorimer.tasks._base import Section, Task


class StraightLine(Task):
    name = "straight-line"
    description = "Fits a line"

    class Data(Section):
        aliases = {"number": "count"}

        count: int = 12
        """How many points."""

    def model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).eval()

    def data(self, model):
        x = torch.randn(self.recipe.data.count, 3)
        return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))

    def collate(self, examples):
        return torch.utils.data.default_collate(list(examples))

    def loss(self, model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def evaluate(self, model):
        return {"validation_loss": self.loss(model, (torch.ones(2, 3), torch.ones(2, 1))).item()}

    def preview(self, model, folder, step):
        path = folder / f"step-{step}.txt"
        path.write_text(str(model(torch.ones(1, 3)).item()))
        return [path]
'''

PACKAGE = "a_package_of_plugins"


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    root = tmp_path_factory.mktemp("site")
    sources = {"adapters/row_scale": METHOD, "formats/upright": FORMAT, "tasks/straight_line": TASK}
    for name, source in sources.items():
        file = root / PACKAGE / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        (file.parent / "__init__.py").touch()
    (root / PACKAGE / "__init__.py").touch()
    sys.path.insert(0, str(root))
    registry.add_package(PACKAGE)
    yield
    registry.remove_package(PACKAGE)
    sys.path.remove(str(root))
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def line(folder: Path) -> dict[str, Any]:
    """A tiny recipe for the task."""
    return {"model": None, "data": {"number": 10}, "adapter": {"rank": 2}}


def test_all_three_are_found_by_name() -> None:
    assert "row-scale" in registry.names("method")
    assert "upright" in registry.names("format")
    assert "straight-line" in registry.names("task")


def test_the_method_keeps_the_contract_of_adapters() -> None:
    few = ("linear", "conv-groups")
    chosen = [
        (check, arguments)
        for _, check, arguments in test_adapters.cases({"row-scale": make("row-scale")})
        if arguments["case"].name in few and "thousand" not in check.__name__
    ]
    assert len(chosen) > 30
    for check, arguments in chosen:
        test_adapters.run(check, **arguments)


@pytest.mark.parametrize("method", ["lora", "row-scale"])
@pytest.mark.parametrize("format", ["upright", "lorimer"])
@pytest.mark.parametrize("model", ["plain", "picture"])
def test_the_format_keeps_the_contract_of_formats(
    format: str, method: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_formats, "FORMATS", registry.names("format"))
    plugin = registry.get("format", format)
    for check in [test_formats.check_round_trip, *test_formats.CHECKS]:
        check(plugin, adapter_state(method, model), tmp_path / check.__name__)
    test_formats.check_failed_write(plugin, adapter_state(method, model), tmp_path / "failed", monkeypatch)


@pytest.mark.parametrize("check", test_tasks.CHECKS, ids=lambda check: check.__name__)
def test_the_task_keeps_the_contract_of_tasks(check: Any, tmp_path: Path) -> None:
    check("straight-line", line, tmp_path)


def test_the_task_resumes_as_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_tasks.check_resumed_is_uninterrupted("straight-line", line, tmp_path, monkeypatch)


def test_a_recipe_trains_the_new_method_with_its_own_field_on_the_new_task(tmp_path: Path) -> None:
    values = {"task": "straight-line", "output": str(tmp_path / "run"), **line(tmp_path)}
    overrides = ["adapter.method=row-scale", "adapter.gain=2", "train.steps=6", "train.preview_every=3"]
    result = train(load_recipe(values, overrides, {}))
    state = lorimer.read(result.adapter)
    assert (state.method, state.config) == ("row-scale", {"gain": 2.0})
    assert [path.name for path in sorted((tmp_path / "run" / "samples").iterdir())] == [
        "step-0.txt",
        "step-3.txt",
        "step-6.txt",
    ]
    with pytest.raises(RecipeError, match=r"adapter\.gainn: unknown key\. Did you mean 'gain'"):
        load_recipe(values, ["adapter.method=row-scale", "adapter.gainn=2"], {})


def test_a_file_of_a_method_that_is_gone_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    registry.get("format", "lorimer").write(adapter_state("row-scale", "plain"), path)
    registry.remove_package(PACKAGE)
    try:
        with pytest.raises(FileFormatError, match="row-scale"):
            lorimer.read(path)
    finally:
        registry.add_package(PACKAGE)
