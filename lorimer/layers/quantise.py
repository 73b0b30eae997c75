"""Keeping a frozen base in 8 or 4 bits, by the packages that do it.

    "8bit"    torchao's int8 weights with a scale for each row. Inputs stay as they are, unlike with
              bitsandbytes' 8-bit layer, so the product is off by the weight's rounding alone.
    "nf4"     bitsandbytes' 4-bit NormalFloat in blocks of 64, scales in 8 bits (QLoRA, arXiv 2305.14314)

Linear layers of `SMALLEST` inputs and outputs or more are kept so; convolutions, norms, embeddings and small
layers stay as they are. To be done before adapters are attached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import nn

from lorimer.errors import MissingDependencyError, UsageError, suggest
from lorimer.layers.quantised import dequantised

KEPT = ("8bit", "nf4")
SMALLEST = 128


@dataclass(frozen=True)
class Saving:
    """What quantising saved.

    Attributes:
        layers: how many layers are kept in fewer bits.
        before, after: bytes of the whole part's weights.
        error: of the weights that are kept so: norm of the difference / norm.
    """

    layers: int
    before: int
    after: int
    error: float


def quantise_base(
    part: nn.Module,
    precision: str,
    device: torch.device,
    compute: torch.dtype,
    spared: Container[str] = (),
) -> Saving:
    """Keep the large Linear layers of `part` in "8bit" or "nf4", one after the other, each on `device` then.

    Args:
        compute: the type in which nf4 layers multiply.
        spared: paths of layers to leave alone.

    Raises:
        UsageError: no precision of that name, or no layer of the part is large enough.
        MissingDependencyError: torchao or bitsandbytes is not installed.
    """
    if precision not in KEPT:
        raise UsageError(
            f"no way to keep weights is called {precision!r}.{suggest(precision, KEPT)} "
            f"Known: {', '.join(KEPT)}"
        )
    before, paths = weight_bytes(part), [path for path in _large(part) if path not in spared]
    if not paths:
        raise UsageError(f"{precision} needs a plain Linear layer of {SMALLEST} inputs and outputs or more")
    lost = kept = 0.0
    try:
        for path in paths:
            weight = part.get_submodule(path).weight.detach().to(device)  # type: ignore[operator]
            _quantise(part, path, precision, device, compute)
            lost += float((dequantised(part.get_submodule(path)) - weight).float().square().sum())
            kept += float(weight.float().square().sum())
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'keeping weights in {precision} needs {error.name}: pip install "lorimer[quantised]"'
        ) from error
    return Saving(len(paths), before, weight_bytes(part), (lost / kept) ** 0.5 if kept else 0.0)


def weight_bytes(module: nn.Module, without: Container[int] = (), on: str | None = None) -> int:
    """Bytes of all parameters and buffers of a module, of quantised ones as they are kept; but for those
    `without` (by id), and those that are not `on` that type of device."""
    every = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(
        _bytes(each)
        for key, each in every.items()
        if key not in without and (on is None or each.device.type == on)
    )


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of one tensor; one that consists of others, as torchao's do, is the sum of these."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    state = getattr(tensor, "quant_state", None)  # bitsandbytes keeps the scales beside the weight
    scales = [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
    return sum(each.numel() * each.element_size() for each in (tensor, *scales))


def _large(part: nn.Module) -> list[str]:
    """Paths of the layers worth it; not those that share their weight."""
    users = Counter(id(each) for layer in part.modules() for each in layer._parameters.values())
    return [
        path
        for path, layer in part.named_modules()
        if type(layer) is nn.Linear and min(layer.weight.shape) >= SMALLEST and users[id(layer.weight)] == 1
    ]


def _quantise(part: nn.Module, path: str, precision: str, device: torch.device, compute: torch.dtype) -> None:
    """Keep the layer at `path` in fewer bits."""
    layer = part.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    layer.requires_grad_(False)
    if precision == "8bit":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(layer.to(device), Int8WeightOnlyConfig())
        return
    from bitsandbytes.nn import Linear4bit, Params4bit

    packed = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, compute, device="meta")
    # Else it packs its weight, at the first input without a gradient, in a form that gives none.
    packed.support_avx512bf16_for_cpu = False
    packed.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=packed)
    if layer.bias is not None:  # bitsandbytes would round it to the type of its first input
        packed.bias = nn.Parameter(layer.bias.detach().to(compute), requires_grad=False)
    owner, _, name = path.rpartition(".")
    part.get_submodule(owner).register_module(name, packed.to(device).train(layer.training))
