"""Starts that look at data, gradients, or the weights before quantisation."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from torch import Tensor, nn

import lorimer
from lorimer import CorDA, Eva, LoftQ, LoRA, LoraGA, registry
from lorimer.adapters.lora import LoRAAdapter
from lorimer.errors import StateError, UsageError
from lorimer.layers.sites import sites
from lorimer.ops._observe import observed_inputs
from lorimer.ops._start_maths import Principal, add_rows, spread_ranks
from tests.tolerances import SAME_OUTPUT, relative_difference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # both packages are loud when they are imported
    bitsandbytes = importlib.import_module("bitsandbytes")
    torchao = importlib.import_module("torchao.quantization")

RANK, ALPHA = 3, 5.0
STARTS = {
    "eva": Eva(),
    "eva+rho": Eva(rho=2.0),
    "corda": CorDA(),
    "corda+preserve": CorDA("knowledge-preserved"),
    "lora-ga": LoraGA(),
}


class Net(nn.Module):
    """A grouped convolution and two Linears, with dropout that must be off while data is shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 6, 3, groups=2, padding=1)
        self.up = nn.Linear(6, 16)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)

    def forward(self, picture: Tensor) -> Tensor:
        return self.head(self.drop(self.up(self.conv(picture).mean((2, 3))).tanh()))


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([3.0, 1.0, 0.3, 0.1])[:, None, None]  # so that directions differ in weight
    return [torch.randn(8, 4, 5, 5, generator=generator) * scales for _ in range(count)]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch.mean((1, 2, 3))[:, None]).square().mean()


def attached(model: nn.Module, name: str = "default", **fields: Any) -> lorimer.AttachedAdapter:
    torch.manual_seed(3)
    targets = ["conv", "up", "head"]
    return lorimer.attach(model, LoRA(rank=RANK, alpha=ALPHA, **fields), targets=targets, name=name)


def lora(adapter: lorimer.AttachedAdapter, path: str) -> LoRAAdapter:
    layer = adapter.layers[path]
    assert isinstance(layer, LoRAAdapter)
    return layer


def perturb(adapter: lorimer.AttachedAdapter) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def inputs_of(model: nn.Module, path: str, shown: list[Tensor]) -> Tensor:
    """The rows that go into a layer."""
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    for batch in shown:
        model.eval()(batch)
    handle.remove()
    return torch.cat(seen).detach()


# What holds for each of them


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_base_and_other_adapters_are_untouched_to_the_bit(start: Any) -> None:
    model, x = Net(), batches()[0]
    before, output = copy.deepcopy(model.state_dict()), model.eval()(x)
    other = attached(model, "other")
    perturb(other)
    alone = model(x)
    adapter = attached(model)
    perturb(adapter)
    model.train()
    lorimer.initialise(adapter, start, batches(), forward=loss)
    assert model.training and model.drop.training
    assert not any(parameter.requires_grad for parameter in (model.up.weight, model.conv.weight))
    assert model.up.weight.grad is None and not model.up._forward_pre_hooks
    model.eval()
    with lorimer.enabled(model, "other"):
        assert torch.equal(model(x), alone)
    with lorimer.enabled(model, "default"):
        fresh = model(x)
    if start.shifts:
        assert relative_difference(fresh, output) <= SAME_OUTPUT[torch.float32]
    else:
        assert torch.equal(fresh, output)
    lorimer.detach(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_it_trains_saves_and_loads(start: Any, tmp_path: Path) -> None:
    model, shown = Net().double(), [batch.double() for batch in batches()]
    adapter = attached(model)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.05)  # made before, on purpose
    lorimer.initialise(adapter, start, shown, forward=loss)
    scales = {path: lora(adapter, path).scale for path in adapter.layers}
    assert all(scale == pytest.approx(ALPHA / RANK) for scale in scales.values())
    begin = {name: value.detach().clone() for name, value in adapter.named_parameters()}
    for batch in shown:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    assert all(not torch.equal(value, begin[name]) for name, value in adapter.named_parameters())
    lorimer.save(adapter, tmp_path / "a.safetensors", format="lorimer")
    other = Net().double()
    lorimer.load(other, tmp_path / "a.safetensors")
    assert torch.equal(other.eval()(shown[0]), model.eval()(shown[0]))
    state = adapter.state()
    for path, layer in state.layers.items():
        up, down = LoRA.factors(layer, state.config)
        weight = model.get_submodule(path).weight.detach().flatten(1)
        update = lora(adapter, path).adapt(weight).detach() - weight
        assert relative_difference(up @ down, update) <= SAME_OUTPUT[torch.float64]


def test_a_failure_changes_nothing() -> None:
    model = Net()
    adapter = attached(model)
    perturb(adapter)
    before = adapter.state().layers["up"].tensors

    def fails_late(model: nn.Module, batch: Tensor) -> Tensor:
        if batch is shown[-1]:
            raise RuntimeError("no more")
        return loss(model, batch)

    shown = batches()
    for start in ("eva", "corda", "lora-ga"):
        with pytest.raises(RuntimeError, match="no more"):
            lorimer.initialise(
                adapter, Eva(settled=1.0) if start == "eva" else start, shown, forward=fails_late
            )
        after = adapter.state().layers["up"].tensors
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not model.up._forward_pre_hooks and not model.up.weight.requires_grad


# EVA


def test_eva_finds_the_directions_in_which_inputs_vary_most() -> None:
    model, shown = Net(), batches()
    adapter = attached(model)
    lorimer.initialise(adapter, Eva(settled=1.0), shown)
    for path in ("up", "head"):
        rows = inputs_of(model, path, shown)
        _, _, Vh = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        A = lora(adapter, path).A.detach()
        assert relative_difference((A @ Vh[:RANK].T).abs(), torch.eye(RANK)) <= 1e-3
        assert not lora(adapter, path).B.any()


def test_eva_is_pefts_on_the_same_data() -> None:
    shown = [{"picture": batch} for batch in batches()]
    model = Net()
    adapter = attached(model)
    lorimer.initialise(adapter, Eva(settled=1.0), shown)
    config = LoraConfig(
        r=RANK,
        target_modules=["up", "head"],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, tau=0.9),
    )
    theirs = get_peft_model(Net(), config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(
        theirs,
        shown,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    for path in ("up", "head"):
        A = theirs.base_model.model.get_submodule(path).lora_A.default.weight.detach()
        cosines = (lora(adapter, path).A * A).sum(1).abs()
        assert (cosines[:2] > 0.99).all()  # theirs goes round the data until it has settled, ours once


def test_rows_in_portions_have_the_components_of_all_of_them() -> None:
    torch.manual_seed(0)
    rows = torch.randn(60, 10, dtype=torch.float64) * torch.arange(1, 11) + 5
    told: Principal | None = None
    for portion in rows.split([20, 7, 33]):
        told = add_rows(told, portion, rank=5)  # twice that is everything
    assert told is not None
    centred = rows - rows.mean(0)
    _, S, Vh = torch.linalg.svd(centred, full_matrices=False)
    assert told.count == 60
    assert relative_difference(told.mean, rows.mean(0)) <= SAME_OUTPUT[torch.float64]
    assert relative_difference(told.singular, S) <= SAME_OUTPUT[torch.float64]
    assert relative_difference((told.directions @ Vh.T).abs(), torch.eye(10)) <= SAME_OUTPUT[torch.float64]
    assert told.spread == pytest.approx(S.square().sum().item(), rel=1e-12)


def test_ranks_go_where_they_explain_most() -> None:
    explained = {"a": torch.tensor([0.5, 0.4, 0.09]), "b": torch.tensor([0.05, 0.01, 0.0])}
    assert spread_ranks(explained, 4) == {"a": 3, "b": 1}
    assert spread_ranks(explained, 2) == {"a": 1, "b": 1}


def test_eva_shares_out_ranks_and_keeps_their_sum_and_scale() -> None:
    model = Net()
    adapter = attached(model, rslora=True)
    scale = lora(adapter, "up").scale
    lorimer.initialise(adapter, Eva(rho=2.0), batches())
    ranks = {path: lora(adapter, path).method.rank for path in adapter.layers}
    assert sum(ranks.values()) == 3 * RANK and len(set(ranks.values())) > 1
    for path, rank in ranks.items():
        layer = lora(adapter, path)
        assert (layer.A.shape[0], layer.B.shape[1]) == (rank, rank) and rank <= 2 * RANK
        assert layer.scale == pytest.approx(scale)
    assert {path: layer.rank for path, layer in adapter.state().layers.items()} == ranks


def test_a_mask_says_which_positions_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    x, mask = torch.randn(5, 7, 6), torch.rand(5, 7) < 0.5
    spoiled = torch.where(mask[..., None], x, 1e3)
    found = []
    for batch, rows in ((x[mask], None), ({"input": spoiled, "mask": mask}, lambda batch: batch["mask"])):
        adapter = lorimer.attach(model, LoRA(rank=2), targets="all-linear")
        lorimer.initialise(adapter, "eva", [batch], forward=_first, rows=rows)
        found.append(lora(adapter, "0").A.detach().abs())
        lorimer.detach(model)
    assert relative_difference(*found) <= SAME_OUTPUT[torch.float32]


def _first(model: nn.Module, batch: Any) -> Any:
    return model(batch["input"] if isinstance(batch, dict) else batch)


def test_a_settled_layer_is_watched_no_longer() -> None:
    model = Net()
    shown = iter([batches(1)[0]] * 50)
    lorimer.initialise(attached(model), "eva", shown)
    assert len(list(shown)) > 40  # the same again and again tells nothing new


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, stride=2, dilation=2),
        nn.Conv2d(4, 6, (3, 2), groups=2, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, groups=4, padding="same"),
        nn.Conv3d(2, 3, 2),
    ],
    ids=["1d", "2d-groups", "depthwise", "3d"],
)
def test_the_inputs_of_a_convolution_are_the_patches_that_its_matrix_multiplies(layer: nn.Module) -> None:
    space = 5
    kernel = layer.weight.shape[2:]
    x = torch.randn(2, layer.in_channels, *[space] * len(kernel))  # type: ignore[arg-type,list-item]
    model = nn.Sequential(layer)
    adapter = lorimer.attach(model, LoRA(rank=1), targets="0")
    site = adapter._sites()["0"]
    seen: list[Tensor] = []
    with observed_inputs({"0": site}, lambda path, rows: seen.append(rows), lambda: None):
        output = model(x)
    (rows,) = seen
    groups, out = layer.groups, layer.out_channels
    own = rows.reshape(len(x), -1, groups, rows.shape[-1])
    matrix = layer.weight.detach().flatten(1).reshape(groups, out // groups, -1)  # type: ignore[operator]
    products = torch.einsum("bpgi,goi->bgop", own, matrix).reshape(len(x), out, *output.shape[2:])
    bias = layer.bias.detach().view(-1, *[1] * len(kernel))
    assert relative_difference(products + bias, output.detach()) <= SAME_OUTPUT[torch.float32]


# CorDA


@pytest.mark.parametrize(
    ("mode", "theirs"), [("instruction-previewed", "ipm"), ("knowledge-preserved", "kpm")]
)
def test_corda_is_pefts_on_the_same_data(mode: Any, theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # PEFT's CorDA takes its dataclass decorator from attrs, which nothing else here needs.
    monkeypatch.setitem(sys.modules, "attr", SimpleNamespace(dataclass=dataclass))
    preprocess_corda = importlib.import_module("peft.tuners.lora.corda").preprocess_corda
    shown = batches(1)
    model = Net()
    adapter = attached(model)
    lorimer.initialise(adapter, CorDA(mode), shown)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=["up", "head"],
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=theirs),
    )
    base = Net().eval()
    preprocess_corda(base, config, run_model=lambda: base(shown[0]))
    peft_model = get_peft_model(base, config)
    for path in ("up", "head"):
        other = peft_model.base_model.model.get_submodule(path).get_delta_weight("default").detach()
        own = lora(adapter, path)
        assert relative_difference((own.scale * own.B @ own.A).detach(), other) <= 1e-3


def test_cordas_two_modes_take_the_weights_two_ends() -> None:
    """Together with rank = half of all components they are the whole weight."""
    parts = []
    for mode in ("instruction-previewed", "knowledge-preserved"):
        model = Net().double()
        adapter = lorimer.attach(model, LoRA(rank=3, alpha=1.0), targets="up")
        lorimer.initialise(adapter, CorDA(mode), [batch.double() for batch in batches()])  # type: ignore[arg-type]
        own = lora(adapter, "up")
        parts.append((own.scale * own.B @ own.A).detach())
    assert relative_difference(parts[0] + parts[1], model.up.weight.detach()) <= 1e-9


def test_cordas_previewed_part_is_what_the_inputs_use() -> None:
    """On the data it leaves less of the output to the frozen rest than PiSSA does, which looks at W alone."""
    shown = batches()
    left = {}
    for start in ("corda", "pissa"):
        model = Net()
        method = LoRA(rank=2, start="pissa" if start == "pissa" else "kaiming")
        adapter = lorimer.attach(model, method, targets="up")
        if start == "corda":
            lorimer.initialise(adapter, start, shown)
        rest = model.up.weight - lora(adapter, "up").B @ lora(adapter, "up").A
        left[start] = F.linear(inputs_of(model, "up", shown), rest.detach()).norm().item()
    assert left["corda"] < 0.9 * left["pissa"]


# LoRA-GA


def test_lora_ga_begins_along_the_gradient_of_full_training() -> None:
    model, shown = Net(), batches()
    adapter = attached(model)
    lorimer.initialise(adapter, LoraGA(gamma=4.0), shown, forward=loss)
    full = Net().eval()
    for batch in shown:
        loss(full, batch).backward()
    for path in ("conv", "up", "head"):
        gradient = full.get_submodule(path).weight.grad.flatten(1)
        U, _, Vh = torch.linalg.svd(gradient, full_matrices=False)
        own, size = lora(adapter, path), len(gradient) ** 0.25 / 4.0**0.5
        A, B = own.A.detach().flatten(1), own.B.detach().flatten(1)
        last = min(2 * RANK, len(Vh))
        for found, exact in ((A, Vh[:RANK]), (B.T, U.T[last - RANK : last])):
            assert relative_difference((found @ exact.T).abs(), size * torch.eye(RANK)) <= 1e-2
        assert own.A0 is not None and torch.equal(own.A0, own.A)


def test_lora_gas_first_step_goes_further_down_than_plain_loras() -> None:
    shown, drop = batches(), {}
    for start in ("kaiming", "lora-ga"):
        model = Net()
        adapter = attached(model)
        if start == "lora-ga":
            lorimer.initialise(adapter, start, shown, forward=loss)
        optimizer = torch.optim.SGD(adapter.parameters(), lr=0.05)
        model.eval()
        before = loss(model, shown[0])
        before.backward()
        optimizer.step()
        drop[start] = (before - loss(model, shown[0])).item()
    assert drop["lora-ga"] > 2 * drop["kaiming"] > 0


def test_lora_ga_reaches_parameters_that_are_read() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 5, 8)
    output = model.eval()(x)
    adapter = lorimer.attach(model, LoRA(rank=2), targets="all-linear")
    lorimer.initialise(adapter, "lora-ga", [x], forward=lambda model, x: (model(x) ** 3).mean())
    assert "self_attn.in_proj_weight" in adapter.layers
    assert all(lora(adapter, path).B.any() for path in adapter.layers)
    assert relative_difference(model(x).detach(), output.detach()) <= SAME_OUTPUT[torch.float32]


# LoftQ


def quantised(kind: str) -> nn.Sequential:
    """A Linear (64 -> 32) in 4 or 8 bits, and a plain one."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 4)).requires_grad_(False)
    if kind == "nf4":
        layer = bitsandbytes.nn.Linear4bit(64, 32, compute_dtype=torch.float32, quant_type="nf4")
        layer.load_state_dict(plain[0].state_dict())
        plain[0] = layer.to("cpu")
    elif kind == "int8":
        torchao.quantize_(plain[0], torchao.Int8WeightOnlyConfig())
    return plain


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_loftq_takes_the_largest_part_of_what_quantisation_took(kind: str) -> None:
    original, model = quantised("no"), quantised(kind)
    x = torch.randn(6, 64)
    before = model(x)
    adapter = lorimer.attach(model, LoRA(rank=8, alpha=4.0), targets="0")
    lorimer.initialise(adapter, LoftQ(original))
    layer = lora(adapter, "0")
    base = sites(model)["0"].geometry(model[0]).matrix()
    lost = original[0].weight - base
    mended = layer.adapt(base).detach()
    best = torch.linalg.svdvals(lost)[8:].norm()
    left = torch.linalg.matrix_norm(original[0].weight - mended)
    assert relative_difference(left, best) <= 1e-3
    assert left < 0.8 * torch.linalg.matrix_norm(lost)
    assert (model(x) - original(x)).norm() < (before - original(x)).norm()
    with lorimer.disabled(model):
        assert torch.equal(model(x), before)


def test_loftq_tells_what_does_not_fit() -> None:
    model = quantised("int8")
    adapter = lorimer.attach(model, LoRA(rank=2), targets="0")
    with pytest.raises(UsageError, match=r"'0': in the original '0\.weight' is missing"):
        lorimer.initialise(adapter, LoftQ({}))
    with pytest.raises(UsageError, match=r"is of shape \(3, 3\), not \(32, 64\)"):
        lorimer.initialise(adapter, LoftQ({"0.weight": torch.ones(3, 3)}))
    with pytest.raises(UsageError, match="'0': a quantised weight has no gradient"):
        lorimer.initialise(adapter, "lora-ga", [torch.ones(2, 64)], forward=lambda model, x: model(x).sum())
    plain = attached(Net())
    with pytest.raises(UsageError, match="'conv': is not quantised"):
        lorimer.initialise(plain, LoftQ(Net()))
    wrapped = lorimer.attach(quantised("int8"), registry.get("method", "dora")(rank=2), targets="0")
    with pytest.raises(UsageError, match="changes the output, which a fresh dora adapter must not"):
        lorimer.initialise(wrapped, LoftQ(quantised("no")))


@pytest.mark.parametrize("start", ["pissa", "eva", "corda"])
def test_other_starts_do_on_quantised_weights(start: str) -> None:
    model, x = quantised("nf4").eval(), torch.randn(40, 64)
    before = model(x)  # in evaluation bitsandbytes packs 4-bit weights anew on a CPU, and rounds otherwise
    method = LoRA(rank=4, start="pissa" if start == "pissa" else "kaiming")
    adapter = lorimer.attach(model, method, targets="0")
    if start != "pissa":
        lorimer.initialise(adapter, start, [x])
    assert relative_difference(model(x), before) <= SAME_OUTPUT[torch.float32]
    assert lora(adapter, "0").A.dtype == torch.float32


# Mistakes


def test_mistakes_are_told() -> None:
    model = Net()
    adapter = attached(model)
    with pytest.raises(UsageError, match=r"'evva'\. Did you mean 'eva'"):
        lorimer.initialise(adapter, "evva", batches())
    with pytest.raises(UsageError, match="no input reached 'conv', 'up', 'head'"):
        lorimer.initialise(adapter, "eva", [])
    with pytest.raises(UsageError, match="no gradient reached 'conv'"):
        lorimer.initialise(
            adapter,
            "lora-ga",
            batches(),
            forward=lambda model, x: (
                model.up(x[..., 0, 0, None].expand(8, 4, 6)).mean() + 0 * model.head.weight.sum()
            ),
        )
    with pytest.raises(UsageError, match="must return it as one number"):
        lorimer.initialise(adapter, "lora-ga", batches())
    with pytest.raises(UsageError, match="no mode is called 'knowledge'"):
        CorDA("knowledge")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'conv': sees nothing but zeros"):
        lorimer.initialise(adapter, "corda", [torch.zeros(2, 4, 5, 5)])
    lorimer.merge(model)
    with pytest.raises(StateError):
        lorimer.initialise(adapter, "eva", batches())


def test_layers_that_cannot_be_observed_are_named() -> None:
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 2))
    adapter = lorimer.attach(model, LoRA(rank=2), targets=["0", "1"])
    with pytest.raises(UsageError, match="'0': this start needs to see what goes into a layer"):
        lorimer.initialise(adapter, "eva", [torch.tensor([1, 2])])


def test_dora_may_begin_so_where_its_direction_is_a_lora() -> None:
    dora = registry.get("method", "dora")
    model, shown = Net(), batches()
    output = model.eval()(shown[0])
    adapter = lorimer.attach(model, dora(rank=RANK), targets=["up", "head"])
    lorimer.initialise(adapter, "eva", shown)
    with pytest.raises(UsageError, match="options="):
        lorimer.initialise(adapter, "corda", shown)
    with pytest.raises(UsageError, match="set rho = 1"):
        lorimer.initialise(adapter, Eva(rho=2.0), shown)
    assert relative_difference(model(shown[0]), output) <= SAME_OUTPUT[torch.float32]
    lorimer.detach(model)
    adapter = lorimer.attach(model, dora(rank=RANK, options={"shifted": True}), targets=["up", "head"])
    lorimer.initialise(adapter, "corda", shown)
    assert relative_difference(model(shown[0]), output) <= SAME_OUTPUT[torch.float32]
