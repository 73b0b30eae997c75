"""What single methods promise beyond the contracts that all share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lorimer
from lorimer.adapters import oft
from lorimer.adapters._base import Method
from lorimer.adapters._state import LayerState
from lorimer.adapters.ia3 import IA3
from lorimer.adapters.loha import LoHa
from lorimer.adapters.lokr import LoKr
from lorimer.adapters.lora_fa import LoRAFA
from lorimer.adapters.miss import MiSS, sum_of_shards
from lorimer.adapters.oft import OFT
from lorimer.adapters.vera import VeRA
from lorimer.errors import FileFormatError, UsageError
from lorimer.layers.sites import sites
from lorimer.ops.files import attach_state
from tests.tolerances import SAME_OUTPUT, relative_difference


def one_layer(layer: nn.Module | None = None) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"layer": layer or nn.Linear(12, 20)}).double()


def moved(model: nn.Module, method: Method) -> lorimer.AttachedAdapter:
    """The method's adapter on every layer, off its start."""
    adapter = lorimer.attach(model, method, [name for name, _ in model.named_children()])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter))
    return adapter


FACTORED = {
    "lora-fa": LoRAFA(2, 3),
    "loha": LoHa(2, 3),
    "loha-tucker": LoHa(2, 3, tucker=True),
    "lokr": LoKr(1, 3),
    "lokr-both": LoKr(1, 3, factor=4, decompose_both=True),
    "lokr-whole": LoKr(1, 3, full_matrix=True),
    "lokr-tucker": LoKr(1, 3, factor=2, tucker=True),
}

LAYERS = {
    "linear": lambda: nn.Linear(12, 20),
    "conv": lambda: nn.Conv2d(8, 12, 3),
    "grouped": lambda: nn.Conv1d(6, 9, 3, groups=3),
}


@pytest.mark.parametrize("layer", ["linear", "conv", "grouped"])
@pytest.mark.parametrize("name", FACTORED)
def test_factors_are_the_update_exactly(name: str, layer: str) -> None:
    model, method = one_layer(LAYERS[layer]()), FACTORED[name]
    state = moved(model, method).state()
    (site,) = sites(model).values()
    weight = site.geometry(site.layer).matrix()
    up, down = type(method).factors(state.layers["layer"], state.config)
    change = site.slots["default"].adapt(weight) - weight
    assert relative_difference(up @ down, change) <= SAME_OUTPUT[torch.float64]


def test_lora_fa_keeps_nothing_of_the_input_for_the_backward_pass() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(512, 16)})
    adapter = lorimer.attach(model, LoRAFA(2), "layer").layers["layer"]
    assert [name for name, _ in adapter.named_parameters()] == ["B"] and "A" in adapter.state_dict()
    kept: list[int] = []
    own = {parameter.data_ptr() for parameter in model.state_dict().values()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model["layer"](torch.randn(64, 512))
    output.sum().backward()
    assert adapter.B.grad is not None and sum(kept) < 64 * 512 / 4


def test_vera_shares_its_projections_and_leaves_them_out_of_files() -> None:
    model = nn.ModuleDict({"one": nn.Linear(6, 9), "two": nn.Linear(6, 9), "other": nn.Linear(9, 6)})
    adapter = lorimer.attach(model, VeRA(4), ["one", "two", "other"])
    one, two, other = (adapter.layers[name] for name in ("one", "two", "other"))
    assert one.A.data_ptr() == two.A.data_ptr() and one.B.data_ptr() == two.B.data_ptr()
    assert one.A.shape != other.A.shape
    assert set(adapter.state().layers["one"].tensors) == {"d", "b"}


def test_vera_is_the_same_from_its_seed_alone() -> None:
    model = one_layer()
    state = moved(model, VeRA(4, seed=3)).state()
    x = torch.randn(5, 12, dtype=torch.float64)
    live = model["layer"](x)
    del model
    torch.manual_seed(77)
    again, another = one_layer(), one_layer()
    attach_state(again, state)
    assert torch.equal(again["layer"](x), live)
    attach_state(another, lorimer.AdapterState("vera", state.layers, {"seed": 4}))
    assert not torch.allclose(another["layer"](x), live)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_oft_rotates_whatever_its_parameters_are(size: float) -> None:
    torch.manual_seed(0)
    Q = oft.skew_symmetric(torch.randn(4, 10, dtype=torch.float64) * size, 5)
    R = oft.cayley(Q)
    assert relative_difference(R @ R.mT, torch.eye(5, dtype=torch.float64).expand(4, 5, 5)) <= 1e-11
    assert torch.linalg.det(R).allclose(torch.ones(4, dtype=torch.float64))


def test_oft_keeps_the_angles_between_the_rows() -> None:
    model = one_layer()
    before = model["layer"].weight.detach().clone()
    moved(model, OFT(block_size=4))
    lorimer.merge(model)
    after = model["layer"].weight
    assert not torch.allclose(after, before)
    assert relative_difference(after @ after.T, before @ before.T) <= SAME_OUTPUT[torch.float64]


def test_oft_series_turns_the_other_way_and_close_to_the_transform() -> None:
    Q = oft.skew_symmetric(torch.full((1, 3), 0.01, dtype=torch.float64), 3)
    assert relative_difference(oft.neumann(Q, 9), oft.cayley(-Q)) <= 1e-12


def test_miss_adds_up_shards() -> None:
    assert sum_of_shards(2, 5).tolist() == [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]


def test_ia3_on_the_output_scales_the_bias_too() -> None:
    model = one_layer()
    x = torch.randn(5, 12, dtype=torch.float64)
    base = model["layer"](x)
    adapter = lorimer.attach(model, IA3(), "layer").layers["layer"]
    nn.init.constant_(adapter.l, 3.0)
    assert relative_difference(model["layer"](x), 3 * base) <= SAME_OUTPUT[torch.float64]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IA3(rank=4), "no rank"),
        (lambda: IA3(on="both"), "'output' or 'input'"),
        (lambda: OFT(alpha=2.0), "no rank and no alpha"),
        (lambda: OFT(block_size=1), "at least 2"),
        (lambda: OFT(neumann_terms=2), "0 or 4 to 100"),
        (lambda: LoKr(factor=0), "at least 1, or -1"),
        (lambda: VeRA(seed=-1), "seed must be"),
        (lambda: VeRA(dropout=1.0), "dropout must be"),
        (lambda: MiSS(dropout=-0.1), "dropout must be"),
        (lambda: lorimer.attach(one_layer(), OFT(block_size=5), "layer"), "such as 3, 4, 6"),
        (lambda: lorimer.attach(one_layer(), MiSS(rank=13), "layer"), "at most 12"),
        (lambda: lorimer.attach(one_layer(nn.Conv1d(4, 4, 3, groups=2)), IA3(on="input"), "layer"), "groups"),
    ],
)
def test_impossible_values_are_refused_with_the_mend(make, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_lokr_files_of_other_programs_are_told_by_their_tensors() -> None:
    """The file says neither factor nor which matrices are whole."""
    model = nn.ModuleDict(
        {"small": nn.Linear(6, 10), "large": nn.Linear(64, 96), "conv": nn.Conv2d(16, 32, 3)}
    )
    model = model.double()
    state = moved(model, LoKr(3, 3, factor=4)).state()
    assert {"w2"} <= state.layers["small"].tensors.keys() and "w2_a" in state.layers["large"].tensors
    foreign = lorimer.AdapterState("lokr", state.layers, LoKr.config_of(state.layers))
    foreign.layers["small"].rank, foreign.layers["small"].alpha = 1, 1.0  # nothing there tells a rank
    again = nn.ModuleDict(
        {"small": nn.Linear(6, 10), "large": nn.Linear(64, 96), "conv": nn.Conv2d(16, 32, 3)}
    )
    attach_state(again.double(), foreign)
    assert foreign.config == {"factor": 4}


def test_factors_of_a_huge_product_are_not_made() -> None:
    side = torch.ones(600, 600)
    assert LoKr.factors(LayerState({"w1": side, "w2": side}, 1, 1.0), {}) is None


@pytest.mark.parametrize("lacking", ["w1", "w2"])
def test_half_a_kronecker_product_is_refused(lacking: str) -> None:
    model = one_layer()
    layer = moved(model, LoKr(3, full_matrix=True)).state().layers["layer"]
    del layer.tensors[lacking]
    with pytest.raises(FileFormatError, match="no Kronecker product"):
        LoKr.factors(layer, {})
