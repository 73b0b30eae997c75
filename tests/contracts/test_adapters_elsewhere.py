"""Every method in another process, and sharded over processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import lorimer
from lorimer.adapters._base import Method
from lorimer.attachment.attached import AttachedAdapter
from tests.contracts.adapted_models import adapted, fresh, perturb
from tests.contracts.layer_cases import LAYERS, LayerCase
from tests.contracts.method_cases import METHODS
from tests.contracts.refusals import is_refused
from tests.tolerances import SAME_OUTPUT, relative_difference

CASES = {case.name: case for case in LAYERS}
SAVED_ON = ("linear", "conv-groups", "embedding", "attention-separate", "experts")
SHARDED_ON = ("linear", "experts")


def pairs(layers: tuple[str, ...]) -> dict[str, tuple[Method, LayerCase]]:
    return {
        f"{label}-{name}": (method, CASES[name])
        for label, method in METHODS.items()
        for name in layers
        if not is_refused(label, method, CASES[name])
    }


def test_saved_here_is_the_same_loaded_there(tmp_path: Path) -> None:
    """Another process, another seed, another name: the same outputs to the bit, and the same files."""
    expected: dict[str, Tensor] = {}
    for number, (method, case) in enumerate(pairs(SAVED_ON).values()):
        model = adapted(case, method)
        file = tmp_path / f"{number}.safetensors"
        lorimer.save(lorimer.attached(model)["default"], file, format="lorimer")
        expected[str(number)] = case.run(model, torch.float32).detach().contiguous()
    command = [sys.executable, "-m", "tests.contracts.test_adapters_elsewhere", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "outputs.safetensors")
    assert found.keys() == expected.keys()
    for name, (number, output) in zip(pairs(SAVED_ON), expected.items(), strict=True):
        assert torch.equal(found[number], output), name
        first, second = (tmp_path / f"{number}{end}.safetensors" for end in ("", "-again"))
        assert first.read_bytes() == second.read_bytes(), name


def load_everything(folder: Path) -> None:
    """The other process: load each file under another seed, note the output, and save it again."""
    outputs = {}
    for number, (_, case) in enumerate(pairs(SAVED_ON).values()):
        model = case.model(torch.float32)
        torch.manual_seed(1234 + number)
        adapter = lorimer.load(model, folder / f"{number}.safetensors", name="another")
        outputs[str(number)] = case.run(model, torch.float32).detach().contiguous()
        lorimer.save(adapter, folder / f"{number}-again.safetensors", format="lorimer")
    save_file(outputs, folder / "outputs.safetensors")


@pytest.fixture(scope="module")
def one_process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", pairs(SHARDED_ON))
def test_sharded_training_is_plain_training(one_process_group: None, name: str) -> None:
    """Some steps under FSDP2, which swaps classes itself, against the same steps without."""
    method, case = pairs(SHARDED_ON)[name]
    plain, sharded = (fresh(case, method) for _ in range(2))
    for model in (plain, sharded):
        perturb(model)
    fully_shard(sharded.layer)
    fully_shard(sharded)
    for model in (plain, sharded):
        train(model, case)
    ours, theirs = (lorimer.attached(model)["default"] for model in (plain, sharded))
    for (key, left), (_, right) in zip(whole(ours).items(), whole(theirs).items(), strict=True):
        assert relative_difference(left, right) <= SAME_OUTPUT[torch.float32], key
    state = theirs.state()
    assert all(type(tensor) is Tensor for layer in state.layers.values() for tensor in layer.tensors.values())
    with lorimer.disabled(sharded):
        base = case.run(sharded, torch.float32)
    assert torch.equal(base, case.base(torch.float32, frozen=True))


def train(model: nn.Module, case: LayerCase) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        case.run(model, torch.float32).square().mean().backward()
        optimizer.step()


def whole(adapter: AttachedAdapter) -> dict[str, Tensor]:
    """Every parameter of an adapter, gathered where it is sharded."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        for name, value in adapter.named_parameters()
    }


if __name__ == "__main__":
    load_everything(Path(sys.argv[1]))
