"""Attaching, switching, merging and detaching, and what happens when they fail."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import lorimer
from lorimer import LoRA, registry
from lorimer.attachment import attach as attach_module
from lorimer.errors import FileFormatError, LorimerError, StateError, TargetError, UsageError
from lorimer.ops.files import attach_state


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.LayerNorm(4))


def trained(name: str = "default", model: nn.Module | None = None) -> nn.Module:
    model = model or network()
    adapter = lorimer.attach(model, LoRA(rank=2, alpha=6), name=name)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", ["weight", "forward", "mlp", "a", "ab", "keys", "_modules", "0"])
def test_an_adapter_may_be_called_anything(name) -> None:
    model = trained(name)
    trained(name + "b", model)
    x = torch.randn(3, 6)
    live = model(x)
    assert list(lorimer.attached(model)) == [name, name + "b"]
    state = lorimer.attached(model)[name].state()
    lorimer.detach(model, name + "b")
    assert set(state.layers) == {"0", "2"} and list(lorimer.attached(model)) == [name]
    assert not torch.equal(model(x), live)


@pytest.mark.parametrize("name", ["", "a.b"])
def test_an_impossible_name_is_refused(name) -> None:
    with pytest.raises(UsageError, match="name"):
        lorimer.attach(network(), LoRA(), name=name)


def test_a_taken_name_is_refused() -> None:
    model = trained("a")
    with pytest.raises(StateError, match="'a' is attached already"):
        lorimer.attach(model, LoRA(), name="a")


@pytest.mark.parametrize("rank", [0, -1, 2.5, "8", 10**9])
def test_an_impossible_rank_leaves_the_model_as_it_was(rank) -> None:
    model = network()
    with pytest.raises(UsageError, match="rank"):
        lorimer.attach(model, LoRA(rank=4), rank_pattern={"2": rank})
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not lorimer.attached(model) and type(model[0]) is nn.Linear


def test_a_failure_half_way_rolls_back(monkeypatch) -> None:
    model = network()
    model[3].requires_grad_(False)
    keys = list(model.state_dict())
    real, calls = attach_module.make_host, []

    def failing(layer):
        calls.append(layer)
        if len(calls) == 2:
            raise MemoryError("no memory for the second layer")
        return real(layer)

    monkeypatch.setattr(attach_module, "make_host", failing)
    with pytest.raises(MemoryError):
        lorimer.attach(model, LoRA())
    assert list(model.state_dict()) == keys and type(model[0]) is nn.Linear
    assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("method", [LoRA, "lora", None])
def test_what_is_no_configured_method_is_refused(method) -> None:
    model = network()
    with pytest.raises(UsageError, match=r"LoRA\(rank=8\)"):
        lorimer.attach(model, method)
    assert not lorimer.attached(model) and all(parameter.requires_grad for parameter in model.parameters())


def test_a_failure_in_full_training_rolls_back_the_layers_before_it() -> None:
    model = network()
    for full in ({"0": [99]}, "nowhere", {"2": [0, 0]}):
        with pytest.raises(LorimerError):
            lorimer.attach(model, LoRA(rank=2), targets="2", full=full)
        assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.LayerNorm]
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_weight_and_its_bias_may_have_different_adapters() -> None:
    model, x = network(), torch.randn(3, 6)
    base = model(x)
    lorimer.attach(model, LoRA(rank=2), targets="2", name="weight")
    lorimer.attach(model, LoRA(rank=2), targets="0", full="2.bias", name="bias")
    for adapter in lorimer.attached(model).values():
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.3)
    outputs = {}
    for names in (["weight"], ["bias"], ["weight", "bias"], ["bias", "weight"]):
        with lorimer.enabled(model, *names):
            outputs["+".join(names)] = model(x)
            lorimer.merge(model)
            torch.testing.assert_close(model(x), outputs["+".join(names)])
            lorimer.unmerge(model)
    assert torch.equal(outputs["weight+bias"], outputs["bias+weight"])
    lorimer.detach(model, "weight")
    with lorimer.enabled(model, "bias"):
        assert torch.equal(model(x), outputs["bias"])
    lorimer.detach(model, "bias")
    assert torch.equal(model(x), base) and type(model[2]) is nn.Linear


def test_frozen_parameters_come_back_as_they_were() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    lorimer.attach(model, LoRA(), name="a")
    lorimer.attach(model, LoRA(), name="b")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{layer}.lorimer.weight.adapter_{adapter}.{tensor}"
        for layer in (0, 2)
        for adapter in "ab"
        for tensor in "AB"
    }
    lorimer.detach(model, "b")
    assert not model[2].weight.requires_grad
    lorimer.detach(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_half_precision_bases_get_float32_adapters() -> None:
    adapter = lorimer.attach(network().to(torch.bfloat16), LoRA())
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    adapter = lorimer.attach(network(), LoRA(), dtype=torch.float64)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float64}


def test_contexts_restore_even_after_an_error() -> None:
    model = trained("b", trained("a"))
    x = torch.randn(3, 6)
    live = model(x)
    contexts = (lorimer.enabled(model, "b"), lorimer.strength(model, {"b": 0.5}), lorimer.disabled(model))
    with pytest.raises(RuntimeError), contexts[0], contexts[1], contexts[2]:
        raise RuntimeError
    assert torch.equal(model(x), live)
    for context in (lorimer.enabled(model, "c"), lorimer.strength(model, {"c": 1.0})):
        with pytest.raises(TargetError, match="'c'"), context:
            pass


def test_nothing_can_be_changed_while_merged() -> None:
    model = trained("a")
    lorimer.merge(model)
    for call in (
        lambda: lorimer.attach(model, LoRA(), name="b"),
        lambda: lorimer.detach(model, "a"),
        lambda: lorimer.merge(model),
        lambda: lorimer.disabled(model).__enter__(),
        lambda: lorimer.strength(model, 0.0).__enter__(),
        lambda: setattr(lorimer.attached(model)["a"], "strength", 0.5),
    ):
        with pytest.raises(StateError, match="unmerge"):
            call()
    lorimer.unmerge(model)
    lorimer.detach(model)
    for call in (lambda: lorimer.merge(model), lambda: lorimer.unmerge(model)):
        with pytest.raises(StateError):
            call()


def test_merging_for_good_leaves_plain_weights() -> None:
    model, x = trained(), torch.randn(3, 6)
    live = model(x)
    lorimer.merge(model, keep_original=False)
    assert not lorimer.attached(model) and type(model[0]) is nn.Linear
    assert torch.allclose(model(x), live, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_handle_of_a_detached_adapter_says_so() -> None:
    model = network()
    adapter = lorimer.attach(model, LoRA())
    assert "lora adapter 'default' on 2 layers" in repr(adapter)
    lorimer.detach(model)
    with pytest.raises(StateError, match="no longer attached"):
        adapter.state()
    with pytest.raises(TargetError, match="attached: none"):
        lorimer.detach(model, "default")


def test_loraplus_groups_hold_each_parameter_once() -> None:
    adapter = lorimer.attach(network(), LoRA())
    slow, fast = adapter.parameter_groups(1e-3, fast_ratio=16)
    assert (slow["lr"], fast["lr"]) == (1e-3, 1.6e-2)
    grouped = [id(parameter) for group in (slow, fast) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in adapter.parameters())
    assert {id(layer.B) for layer in adapter.layers.values()} == {id(p) for p in fast["params"]}


def test_the_report_counts_what_is_there(tmp_path) -> None:
    model = network()
    adapter = lorimer.attach(model, LoRA(rank=2, alpha=4))
    report = adapter.report()
    assert report.trainable == sum(parameter.numel() for parameter in adapter.parameters()) == 52
    assert report.total == sum(parameter.numel() for parameter in network().parameters())
    assert "2 layers adapted, 52 parameters train beside 100 frozen ones" in str(report)
    file = lorimer.save(adapter, tmp_path / "a.safetensors", format="lorimer")
    assert 0.5 < report.file_bytes / file.stat().st_size < 2


def test_a_state_that_does_not_fit_lists_everything_and_changes_nothing() -> None:
    state = lorimer.attached(trained())["default"].state()
    state.layers["nowhere"] = state.layers["0"]
    state.layers["3"] = state.layers.pop("2")
    state.layers["0"].tensors["C"] = state.layers["0"].tensors.pop("B")
    model = network()
    with pytest.raises(FileFormatError) as error:
        attach_state(model, state)
    for part in ("no 'nowhere'", "'3' is a vector", "'B' is missing", "'C' is not known"):
        assert part in str(error.value)
    assert not lorimer.attached(model) and all(p.requires_grad for p in model.parameters())
    state.layers.clear()
    with pytest.raises(FileFormatError, match="no layers"):
        attach_state(model, state)


def test_a_shape_that_does_not_fit_is_named() -> None:
    state = lorimer.attached(trained())["default"].state()
    with pytest.raises(FileFormatError, match=r"A has shape \(2, 6\), the layer needs \(2, 5\)"):
        attach_state(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)), state)


def test_a_part_of_a_larger_model_is_saved_and_loaded_as_such(tmp_path) -> None:
    unet, x = trained(), torch.randn(3, 6)
    file = lorimer.save(
        lorimer.attached(unet)["default"], tmp_path / "a.safetensors", format="lorimer", component="unet"
    )
    assert set(lorimer.read(file).layers) == {"unet.0", "unet.2"}
    whole, part = nn.ModuleDict({"unet": network()}), network()
    lorimer.load(whole, file)
    lorimer.load(part, file, component="unet")
    assert torch.equal(part(x), unet(x)) and torch.equal(whole["unet"](x), unet(x))
    with pytest.raises(FileFormatError, match="pass component='unet'"):
        lorimer.load(network(), file)
    with pytest.raises(FileFormatError, match="no part 'vae'; it holds unet"):
        lorimer.load(network(), file, component="vae")


def test_an_unmergeable_method_is_refused(monkeypatch) -> None:
    model = trained()
    monkeypatch.setattr(LoRA, "mergeable", False)
    with pytest.raises(LorimerError, match="cannot be merged"):
        lorimer.merge(model)


def test_the_registry_names_and_suggests() -> None:
    assert "lora" in registry.names("method") and registry.get("method", "lora") is LoRA
    with pytest.raises(UsageError, match="Did you mean 'lora'"):
        registry.get("method", "lorra")


def test_unknown_attributes_of_the_package_are_errors() -> None:
    with pytest.raises(AttributeError, match="atach"):
        lorimer.atach  # noqa: B018
    assert "attach" in dir(lorimer) and callable(lorimer.attach)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_impossible_alpha_is_refused(alpha) -> None:
    with pytest.raises(UsageError, match="alpha"):
        lorimer.attach(network(), LoRA(rank=2, alpha=alpha))


def encoder() -> nn.Module:
    """In evaluation torch reads the weights of `linear1` and `linear2` without calling them."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
def test_adapters_act_in_an_encoder_that_torch_would_run_in_one_piece(padded) -> None:
    model, x = encoder(), torch.randn(2, 4, 8)
    padding = torch.tensor([[False] * 4, [False, False, True, True]]) if padded else None
    seen = torch.ones(2, 4, dtype=torch.bool) if padding is None else ~padding
    with torch.no_grad():
        base = model(x, src_key_padding_mask=padding)
        trained(model=model)
        live = model(x, src_key_padding_mask=padding)
        with lorimer.disabled(model):
            assert torch.equal(model(x, src_key_padding_mask=padding), base)
        lorimer.merge(model)
        merged = model(x, src_key_padding_mask=padding)
    assert not torch.allclose(live[seen], base[seen], atol=1e-3)
    torch.testing.assert_close(live[seen], merged[seen])


def test_a_whole_model_is_pickled_with_its_adapters() -> None:
    model, x = trained(), torch.randn(3, 6)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), model(x)) and type(again[0]) is type(model[0])
    lorimer.detach(again)
    assert type(again[0]) is nn.Linear and len(lorimer.attached(model)) == 1


def test_an_adapter_named_twice_acts_once() -> None:
    model, x = trained(), torch.randn(3, 6)
    live = model(x)
    with lorimer.enabled(model, "default", "default"):
        assert torch.equal(model(x), live)


def test_what_a_part_froze_is_given_back_with_the_whole() -> None:
    model = nn.Sequential(network(), nn.Linear(4, 4))
    lorimer.attach(model[0], LoRA(rank=2), name="part")
    lorimer.attach(model, LoRA(rank=2), name="whole")
    lorimer.detach(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("change", [lorimer.merge, lorimer.detach])
def test_a_strength_may_be_merged_or_detached_within_its_context(change) -> None:
    model = trained()
    adapter = lorimer.attached(model)["default"]
    with lorimer.strength(model, 0.5):
        change(model)
    if change is lorimer.merge:
        lorimer.unmerge(model)
        assert adapter.strength == 1.0


def test_a_precision_too_coarse_for_an_adapter_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"torch\.int8"):
        lorimer.save(lorimer.attached(trained())["default"], tmp_path / "out", dtype=torch.int8)
    assert not (tmp_path / "out").exists()
