"""Small layers of every adaptable kind and the inputs they take, for the adapter contracts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class OneLayer(nn.Module):
    """A layer with a model around it. Its output is one tensor: what the layer gives first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.layer(*inputs)
        return output if isinstance(output, Tensor) else output[0]


@dataclass(frozen=True)
class LayerCase:
    """A layer to adapt.

    Attributes:
        name: what tests call it.
        make: the bare layer.
        input_shapes: one for each input.
        tokens: the inputs are integers below this number, not floats.
        targets: what to adapt in `model(dtype)`: the layer, or parameters of it.
        kind: of what is adapted there, see `WeightSpec.kind`.
        called: the layer's forward is called (Linear, Conv, ...), so `Geometry.apply` and quick paths hold;
            otherwise parameters are read by whoever owns them, and there may be several sites.
        not_compiled: why torch cannot compile the bare layer without graph breaks; "" where it can.
        dtypes: those that torch runs the bare layer in on the CPU.
    """

    name: str
    make: Callable[[], nn.Module]
    input_shapes: tuple[tuple[int, ...], ...]
    tokens: int | None = None
    targets: tuple[str, ...] = ("layer",)
    kind: str = "matrix"
    called: bool = True
    not_compiled: str = ""
    dtypes: tuple[torch.dtype, ...] = ALL_DTYPES

    def base(self, dtype: torch.dtype, frozen: bool) -> Tensor:
        """The output of the model without an adapter.

        Where parameters want gradients, as those with an adapter folded in do, torch may pick other kernels,
        a few bits apart.
        """
        return self.run(self.model(dtype).requires_grad_(not frozen), dtype)

    def model(self, dtype: torch.dtype) -> OneLayer:
        """The layer inside a model, the same weights each time."""
        torch.manual_seed(0)
        return OneLayer(self.make()).to(dtype)

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The inputs, the same each time."""
        generator = torch.Generator().manual_seed(1)
        if self.tokens is not None:
            return tuple(
                torch.randint(self.tokens, shape, generator=generator) for shape in self.input_shapes
            )
        return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in self.input_shapes)

    def run(self, model: nn.Module, dtype: torch.dtype) -> Tensor:
        """The model's output on those inputs.

        They want gradients, as torch may pick another kernel, a few bits apart, where nothing does.
        """
        inputs = self.inputs(dtype)
        output: Tensor = model(*(x.requires_grad_(x.is_floating_point()) for x in inputs))
        return output


class Experts(nn.Module):
    """Fused expert weights as transformers keeps them, read expert by expert: (experts, out, in)."""

    def __init__(self, experts: int = 3, width: int = 6, hidden: int = 4) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(experts, hidden, width) * 0.4)
        self.down_proj = nn.Parameter(torch.randn(experts, width, hidden) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        output = torch.zeros_like(x)
        for expert in range(len(self.up_proj)):
            hidden = nn.functional.silu(x @ self.up_proj[expert].T)
            output = output + hidden @ self.down_proj[expert].T
        return output


class TransposedExperts(Experts):
    """The same as (experts, in, out), multiplied all at once, as in GPT-OSS; they say so of themselves."""

    is_transposed = True

    def __init__(self, experts: int = 3, width: int = 6, hidden: int = 4) -> None:
        super().__init__(experts, hidden, width)  # so that up_proj is (experts, width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return (nn.functional.silu(x @ self.up_proj) @ self.down_proj).sum(0)


class OwnWeight(nn.Module):
    """A layer that lorimer knows nothing of, with a matrix called `weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(x, self.weight))


def attention(**options: Any) -> Callable[[], nn.Module]:
    """`nn.MultiheadAttention` whose biases are not all zero."""

    def make() -> nn.Module:
        layer = nn.MultiheadAttention(8, 2, **options)
        nn.init.normal_(layer.in_proj_bias, std=0.1)
        return layer

    return make


def normalised(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A norm whose scale is not all ones."""

    def make() -> nn.Module:
        norm = layer()
        nn.init.normal_(norm.weight, 1.0, 0.2)
        return norm

    return make


_RNN = "torch compiles no RNN unless torch._dynamo.config.allow_rnn is set"

LAYERS = [
    LayerCase("linear", lambda: nn.Linear(6, 9), ((4, 6),)),
    LayerCase("linear-square-no-bias", lambda: nn.Linear(8, 8, bias=False), ((2, 3, 8),)),
    LayerCase("linear-to-one", lambda: nn.Linear(5, 1), ((4, 5),)),
    LayerCase("hugging-face-conv1d", lambda: Conv1D(9, 6), ((2, 4, 6),)),
    LayerCase("embedding", lambda: nn.Embedding(11, 6), ((3, 4),), tokens=11),
    LayerCase(
        "embedding-padded",
        lambda: nn.Embedding(11, 6, padding_idx=2, scale_grad_by_freq=True),
        ((3, 9),),
        tokens=11,
    ),
    LayerCase("conv-1x1", lambda: nn.Conv2d(4, 6, 1), ((2, 4, 5, 5),)),
    LayerCase("conv-3x3", lambda: nn.Conv2d(4, 6, 3, padding=1), ((2, 4, 6, 5),)),
    LayerCase("conv-5x3-stride", lambda: nn.Conv2d(3, 5, (5, 3), stride=(2, 1), bias=False), ((2, 3, 9, 7),)),
    LayerCase("conv-same-dilated", lambda: nn.Conv2d(3, 4, 3, padding="same", dilation=2), ((2, 3, 7, 7),)),
    LayerCase("conv-reflect", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), ((2, 3, 6, 6),)),
    LayerCase(
        "conv-circular",
        lambda: nn.Conv2d(3, 4, (3, 5), padding=(1, 2), padding_mode="circular"),
        ((2, 3, 6, 6),),
    ),
    LayerCase("conv-groups", lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), ((2, 4, 5, 5),)),
    LayerCase("conv-depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2), ((2, 4, 7, 7),)),
    LayerCase("conv1d", lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), ((2, 4, 7),)),
    LayerCase(
        "conv1d-replicate",
        lambda: nn.Conv1d(4, 6, 3, padding="same", padding_mode="replicate"),
        ((2, 4, 7),),
    ),
    LayerCase("conv1d-depthwise", lambda: nn.Conv1d(4, 4, 3, groups=4), ((2, 4, 7),)),
    LayerCase("conv3d", lambda: nn.Conv3d(3, 4, (1, 3, 2), padding=(0, 1, 0)), ((2, 3, 2, 4, 3),)),
    LayerCase("conv3d-groups", lambda: nn.Conv3d(2, 4, 2, groups=2), ((2, 2, 3, 3, 3),)),
    LayerCase("conv1d-transposed", lambda: nn.ConvTranspose1d(4, 3, 3, stride=2), ((2, 4, 5),)),
    LayerCase(
        "conv2d-transposed",
        lambda: nn.ConvTranspose2d(3, 5, (3, 2), stride=2, padding=1, output_padding=1, dilation=(1, 2)),
        ((2, 3, 4, 4),),
    ),
    LayerCase(
        "conv2d-transposed-groups",
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1, bias=False),
        ((2, 4, 3, 3),),
    ),
    LayerCase(
        "conv2d-transposed-depthwise",
        lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4),
        ((2, 4, 3, 3),),
    ),
    LayerCase("conv3d-transposed", lambda: nn.ConvTranspose3d(3, 2, 2, stride=2), ((1, 3, 2, 2, 2),)),
    LayerCase("attention-packed", attention(), ((5, 2, 8),) * 3, called=False),
    LayerCase(
        "attention-batch-first", attention(batch_first=True, bias=True), ((2, 5, 8),) * 3, called=False
    ),
    LayerCase(
        "attention-separate",
        attention(kdim=6, vdim=4, add_bias_kv=True),
        ((5, 2, 8), (3, 2, 6), (3, 2, 4)),
        called=False,
    ),
    LayerCase(
        "lstm",
        lambda: nn.LSTM(5, 4, num_layers=2, bidirectional=True),
        ((4, 2, 5),),
        called=False,
        not_compiled=_RNN,
    ),
    LayerCase(
        "lstm-projected",
        lambda: nn.LSTM(5, 6, proj_size=3),
        ((4, 2, 5),),
        called=False,
        not_compiled=_RNN,
        dtypes=(torch.float64,),  # in others torch warns that oneDNN has no such thing
    ),
    LayerCase(
        "gru",
        lambda: nn.GRU(5, 4, batch_first=True),
        ((2, 4, 5),),
        called=False,
        not_compiled=_RNN,
    ),
    LayerCase("rnn", lambda: nn.RNN(5, 4, bias=False), ((4, 2, 5),), called=False, not_compiled=_RNN),
    LayerCase("experts", Experts, ((4, 6),), kind="stack", called=False),
    LayerCase(
        "experts-transposed",
        TransposedExperts,
        ((4, 6),),
        targets=("layer.up_proj", "layer.down_proj"),
        kind="stack",
        called=False,
    ),
    LayerCase("own-weight", OwnWeight, ((4, 6),), called=False),
    LayerCase("layer-norm", normalised(lambda: nn.LayerNorm(6)), ((4, 6),), kind="vector", called=False),
    LayerCase("rms-norm", normalised(lambda: nn.RMSNorm(6)), ((4, 6),), kind="vector", called=False),
    LayerCase(
        "group-norm", normalised(lambda: nn.GroupNorm(2, 6)), ((4, 6, 3),), kind="vector", called=False
    ),
    LayerCase(
        "batch-norm", normalised(lambda: nn.BatchNorm1d(6).eval()), ((4, 6),), kind="vector", called=False
    ),
]
