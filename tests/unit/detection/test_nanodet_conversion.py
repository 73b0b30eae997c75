"""scripts/nanodet_weights.py on random weights in the published graph's layout, and on other graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorimer.errors import FileFormatError
from lorimer.models.nanodet import NanoDet, NanoDetConfig
from tests.unit.docs.pages import script

weights = script("nanodet_weights")
Told = dict[str, Any]


@pytest.fixture(scope="module")
def network() -> NanoDet:
    torch.manual_seed(0)
    return NanoDet(NanoDetConfig(weights.COCO)).half()


@pytest.fixture(scope="module")
def graph(network: NanoDet) -> tuple[Told, bytes]:
    """What nanodet.json says and what nanodet.bin holds."""
    sizes = [{"size": str(size)} for size in (1, 3, 416, 416)]
    nodes: list[Told] = [
        {"name": "input_1", "op": "Placeholder", "attr": {"shape": {"shape": {"dim": sizes}}}}
    ]
    specs, data = [], b""
    for number, layers in enumerate(weights._in_order(network)):
        end = f"_{number}" if number else ""
        kernel = torch.cat([layer.weight for layer in layers]).detach().permute(2, 3, 1, 0)
        bias = torch.cat([layer.bias for layer in layers]).detach()
        for name, value in ((f"split{end}", kernel), (f"unknown_{2 * number}", bias)):
            nodes.append({"name": name, "op": "Const", "attr": {}})
            quantised = {"dtype": "float16", "original_dtype": "float32"}
            shape = list(value.shape)
            specs.append({"name": name, "shape": shape, "dtype": "float32", "quantization": quantised})
            data += value.contiguous().numpy().astype("<f2").tobytes()
        stride = str(layers[0].stride[0])
        strides = {"strides": {"list": {"i": ["1", stride, stride, "1"]}}}
        convolution = f"PartitionedCall/convolution{end}"
        nodes.append({"name": convolution, "op": "Conv2D", "input": ["x", f"split{end}"], "attr": strides})
        added = [convolution, f"unknown_{2 * number}"]
        nodes.append({"name": f"Add{end}", "op": "Add", "input": added, "attr": {}})
    slope = {"alpha": {"f": 0.1}}
    nodes += [{"name": f"LeakyRelu_{number}", "op": "LeakyRelu", "attr": slope} for number in range(28)]
    middle = {"half_pixel_centers": {"b": True}, "align_corners": {"b": False}}
    nodes += [{"name": f"resize_{number}", "op": "ResizeBilinear", "attr": middle} for number in range(4)]
    manifest = [{"paths": ["nanodet.bin"], "weights": specs}]
    return {"modelTopology": {"node": nodes}, "weightsManifest": manifest}, data


def _written(told: Told, data: bytes, folder: Path) -> Path:
    (folder / "nanodet.bin").write_bytes(data)
    path = folder / "nanodet.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


def test_every_weight_finds_its_place(network: NanoDet, graph: tuple[Told, bytes], tmp_path: Path) -> None:
    found, config = weights.convert(_written(*graph, tmp_path))
    assert len(config.class_names) == len(set(config.class_names)) == 80
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def _node(told: Told, kind: str) -> Told:
    return next(node for node in told["modelTopology"]["node"] if node["op"] == kind)


def _without_a_convolution(told: Told) -> None:
    told["modelTopology"]["node"].remove(_node(told, "Conv2D"))


def _with_another_stride(told: Told) -> None:
    _node(told, "Conv2D")["attr"]["strides"]["list"]["i"] = ["1", "1", "1", "1"]


def _with_another_kernel(told: Told) -> None:
    told["weightsManifest"][0]["weights"][0]["shape"].reverse()


def _with_another_slope(told: Told) -> None:
    _node(told, "LeakyRelu")["attr"]["alpha"]["f"] = 0.2


def _with_corners(told: Told) -> None:
    _node(told, "ResizeBilinear")["attr"]["align_corners"]["b"] = True


def _at_another_size(told: Told) -> None:
    _node(told, "Placeholder")["attr"]["shape"]["shape"]["dim"][3]["size"] = "320"


def _with_more_bytes_told(told: Told) -> None:
    told["weightsManifest"][0]["weights"][1]["shape"] = [33]


def _out_of_its_folder(told: Told) -> None:
    told["weightsManifest"][0]["paths"] = ["../nanodet.bin"]


def _in_two_files(told: Told) -> None:
    told["weightsManifest"][0]["paths"].append("more.bin")


def _without_nodes(told: Told) -> None:
    told["modelTopology"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_a_convolution, "has 33 convolutions rather than 34"),
        (_with_another_stride, "convolution has another stride"),
        (_with_another_kernel, "convolution has another size"),
        (_with_another_slope, "another slope"),
        (_with_corners, "a resizing is missing or of another kind"),
        (_at_another_size, "it takes [1, 3, 416, 320]"),
        (_with_more_bytes_told, "does not have the"),
        (_out_of_its_folder, "leads out of the folder"),
        (_in_two_files, "is not the graph of a NanoDet-g"),
        (_without_nodes, "is not the graph of a NanoDet-g"),
    ],
)
def test_another_graph_is_refused(
    change: Callable[[Told], None], message: str, graph: tuple[Told, bytes], tmp_path: Path
) -> None:
    told = json.loads(json.dumps(graph[0]))
    change(told)
    with pytest.raises(FileFormatError) as caught:
        weights.convert(_written(told, graph[1], tmp_path))
    assert message in str(caught.value)


def test_a_missing_or_cut_file_is_refused(graph: tuple[Told, bytes], tmp_path: Path) -> None:
    path = _written(graph[0], graph[1][:-2], tmp_path)
    with pytest.raises(FileFormatError, match="does not have the"):
        weights.convert(path)
    path.with_name("nanodet.bin").unlink()
    with pytest.raises(FileFormatError, match=r"nanodet\.bin"):
        weights.convert(path)


def test_a_constant_of_a_huge_size_is_refused_before_memory_is_taken(
    graph: tuple[Told, bytes], tmp_path: Path
) -> None:
    told = json.loads(json.dumps(graph[0]))
    told["weightsManifest"][0]["weights"][0]["shape"] = [10**6] * 6
    with pytest.raises(FileFormatError, match="does not have the"):
        weights.convert(_written(told, graph[1], tmp_path))
