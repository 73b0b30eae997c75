"""EfficientNet-Lite0 with the real weights is the original network, and sees what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lorimer
from lorimer import LoRA
from lorimer.errors import FileFormatError
from lorimer.formats.safe_io import read_packaged_tensors
from lorimer.models.efficientnet_lite import EfficientNetLite, imagenet_labels, padded
from lorimer.tasks._image_models import ImageModel, load_image_model
from lorimer.tasks._image_preparation import Asked
from lorimer.tasks._packaged_weights import packaged
from tests.tolerances import SAME_NETWORK_OUTPUT

LABELS = imagenet_labels()


class Unwelcome:
    """What a file of tensors has no business to build."""


# Of each block as the reference implementation's arguments have it: kernel, stride.
BLOCKS = [(3, 1), (3, 2), (3, 1), (5, 2), (5, 1), (3, 2), (3, 1), (3, 1), (5, 1), (5, 1), (5, 1)]
BLOCKS += [(5, 2), (5, 1), (5, 1), (5, 1), (3, 1)]


@pytest.fixture(scope="module")
def network() -> ImageModel:
    return load_image_model("efficientnet-lite0", LABELS, Asked())


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network spelt out over the package's own names."""

    def normed(x: Tensor, name: str) -> Tensor:
        held = (f"{name}.running_mean", f"{name}.running_var", f"{name}.weight", f"{name}.bias")
        mean, variance, scale, shift = (state[key][:, None, None] for key in held)
        return (x - mean) / (variance + 1e-3).sqrt() * scale + shift

    def convolved(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + weight.shape[-1] - x.shape[-1], 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    x = normed(convolved(x, "_conv_stem", 2), "_bn0").clamp(0, 6)
    for number, (_, stride) in enumerate(BLOCKS):
        block, before = f"_blocks.{number}", x
        if f"{block}._expand_conv.weight" in state:
            x = normed(convolved(x, f"{block}._expand_conv"), f"{block}._bn0").clamp(0, 6)
        x = normed(convolved(x, f"{block}._depthwise_conv", stride), f"{block}._bn1").clamp(0, 6)
        x = normed(convolved(x, f"{block}._project_conv"), f"{block}._bn2")
        x = x + before if x.shape == before.shape else x
    x = normed(convolved(x, "_conv_head"), "_bn1").clamp(0, 6).mean((2, 3))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


@pytest.mark.parametrize("side", [224, 97])
def test_its_outputs_are_the_original_networks(network: ImageModel, side: int) -> None:
    state = torch.load(packaged("efficientnet-lite0"), weights_only=True)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.model(x), reference(state, x), rtol=SAME_NETWORK_OUTPUT, atol=1e-4)


def test_every_weight_of_the_package_is_used(network: ImageModel) -> None:
    state = torch.load(packaged("efficientnet-lite0"), weights_only=True)
    assert sorted(map(tuple, (value.shape for value in state.values()))) == sorted(
        tuple(value.shape) for value in network.model.state_dict().values()
    )
    assert not network.new


def test_kernels_and_strides_are_the_reference_arguments() -> None:
    blocks = [
        (block.depthwise.kernel_size[0], block.depthwise.stride[0]) for block in EfficientNetLite().blocks
    ]
    assert blocks == BLOCKS


@pytest.mark.parametrize(("side", "stride", "kernel"), [(224, 2, 3), (7, 2, 5), (8, 2, 5), (1, 2, 3)])
def test_padding_halves_the_side_rounded_up(side: int, stride: int, kernel: int) -> None:
    convolution = torch.nn.Conv2d(1, 1, kernel, stride)
    assert convolution(padded(torch.zeros(1, 1, side, side), convolution)).shape[-1] == -(-side // stride)


def test_a_head_for_other_labels_is_new_and_the_rest_is_not(network: ImageModel) -> None:
    other = load_image_model("efficientnet-lite0", ("cat", "dog"), Asked())
    assert other.new == ("classifier.weight", "classifier.bias") and other.heads == ("classifier",)
    ours, theirs = other.model.state_dict(), network.model.state_dict()
    assert ours["classifier.weight"].shape == (2, 1280)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.startswith("classifier"))


def test_every_convolution_depthwise_too_takes_an_adapter_that_merges(network: ImageModel) -> None:
    model = load_image_model("efficientnet-lite0", ("cat", "dog"), Asked()).model
    adapter = lorimer.attach(model, LoRA(2), "all-linear-conv")
    convolutions = sum(isinstance(each, torch.nn.Conv2d) for each in model.modules())
    assert len(adapter.layers) == convolutions + 1 == 50
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0.0, 0.02)
        x = torch.randn(1, 3, 64, 64)
        live = model(x)
        lorimer.merge(model)
        torch.testing.assert_close(model(x), live, rtol=SAME_NETWORK_OUTPUT, atol=1e-4)


def test_a_thousand_labels_are_each_once() -> None:
    assert len(LABELS) == len(set(LABELS)) == 1000
    assert LABELS[0].startswith("tench") and LABELS[999].startswith("toilet tissue")


def test_only_tensors_come_out_of_torchs_own_files(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    for value in ({"a": Unwelcome()}, {"a": 1}, [torch.zeros(1)], {"a": torch.tensor([float("nan")])}):
        torch.save(value, file)
        with pytest.raises(FileFormatError, match=r"x\.pth"):
            read_packaged_tensors(file)
    file.write_bytes(b"PK")
    with pytest.raises(FileFormatError, match="is no whole state dict"):
        read_packaged_tensors(file)
