"""A TensorFlow.js graph, node by node: a reading of nanodet.json that knows nothing of NanoDet."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, leaky_relu, max_pool2d, pad

Attributes = dict[str, Any]


def run(path: Path, pixels: Tensor, outputs: list[str]) -> list[Tensor]:
    """What the graph in a file makes of pixels (1, 3, height, width)."""
    told = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["name"]: node for node in told["modelTopology"]["node"]}
    values: dict[str, list[Tensor]] = {
        name: [value] for name, value in constants(path, told["weightsManifest"][0]).items()
    }

    def value(source: str) -> Tensor:
        name, _, place = source.partition(":")
        if name not in values:
            node = nodes[name]
            if node["op"] == "Placeholder":
                values[name] = [pixels]
            else:
                made = OPERATIONS[node["op"]]([value(each) for each in node["input"]], node["attr"])
                values[name] = made if isinstance(made, list) else [made]
        return values[name][int(place or 0)]

    return [value(name) for name in outputs]


def constants(path: Path, group: dict[str, Any]) -> dict[str, Tensor]:
    data, place, found = path.with_name(group["paths"][0]).read_bytes(), 0, {}
    for spec in group["weights"]:
        kind = np.dtype(spec.get("quantization", spec)["dtype"])
        count = int(np.prod(spec["shape"]))
        array = np.frombuffer(data, kind, count, place).reshape(spec["shape"])
        place += array.nbytes
        found[spec["name"]] = torch.from_numpy(array.astype(spec["dtype"]))
    assert place == len(data)
    return found


def _padded(inputs: list[Tensor], _: Attributes) -> Tensor:
    widths = [width for pair in reversed(inputs[1].tolist()) for width in pair]
    return pad(inputs[0], widths, value=inputs[2].item() if len(inputs) > 2 else 0.0)


def _convolved(inputs: list[Tensor], told: Attributes) -> Tensor:
    _require(told, data_format="NHWC", padding="VALID")
    _, along, across, _ = map(int, told["strides"]["list"]["i"])
    image, kernel = inputs[0].permute(0, 3, 1, 2), inputs[1].permute(3, 2, 0, 1)
    return conv2d(image, kernel, stride=(along, across)).permute(0, 2, 3, 1)


def _pooled(inputs: list[Tensor], told: Attributes) -> Tensor:
    _require(told, data_format="NHWC", padding="VALID")
    sizes = [list(map(int, told[name]["list"]["i"]))[1:3] for name in ("ksize", "strides")]
    return max_pool2d(inputs[0].permute(0, 3, 1, 2), *sizes).permute(0, 2, 3, 1)


def _resized(inputs: list[Tensor], told: Attributes) -> Tensor:
    assert told["half_pixel_centers"]["b"] and not told["align_corners"]["b"]
    image, size = inputs[0].permute(0, 3, 1, 2), inputs[1].tolist()
    return interpolate(image, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def _dense(inputs: list[Tensor], _: Attributes) -> Tensor:
    indices, shape, values, default = inputs
    dense = default.expand(shape.tolist()).clone()
    dense[tuple(indices.long().T)] = values
    return dense


def _require(told: Attributes, **texts: str) -> None:
    for name, text in texts.items():
        assert base64.b64decode(told[name]["s"]).decode() == text


OPERATIONS: dict[str, Callable[[list[Tensor], Attributes], Tensor | list[Tensor]]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "AddV2": lambda inputs, _: inputs[0] + inputs[1],
    "ConcatV2": lambda inputs, _: torch.cat(inputs[:-1], dim=int(inputs[-1])),
    "Conv2D": _convolved,
    "Identity": lambda inputs, _: inputs[0],
    "LeakyRelu": lambda inputs, told: leaky_relu(inputs[0], told["alpha"]["f"]),
    "MaxPool": _pooled,
    "Pad": _padded,
    "PadV2": _padded,
    "Reshape": lambda inputs, _: inputs[0].reshape(inputs[1].tolist()),
    "ResizeBilinear": _resized,
    "Sigmoid": lambda inputs, _: inputs[0].sigmoid(),
    "SparseToDense": _dense,
    "SplitV": lambda inputs, _: list(inputs[0].split(inputs[1].tolist(), dim=int(inputs[2]))),
    "Transpose": lambda inputs, _: inputs[0].permute(inputs[1].tolist()),
}
