"""What a run takes of memory, and the ways to take less: none of them changes what is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

import lorimer
from lorimer import LoRA
from lorimer.errors import LorimerError, RecipeError
from lorimer.layers.offload import Offload, blocks_of, move
from lorimer.tasks._parking import Parking
from lorimer.tasks.module import Module
from lorimer.train.engine import check, train
from lorimer.train.measure import Memory, peak
from lorimer.train.preflight import Preflight
from lorimer.train.sections import TrainSection
from tests.unit.layers.test_offload import Tower
from tests.unit.train.small import recipe
from tests.unit.train.test_engine import learned

THIS, CPU = __name__, torch.device("cpu")


class Net(nn.Module):
    """A tower of blocks for six inputs, and a part that only previews use."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.tower, self.leave = nn.Linear(6, 4), Tower(), nn.Linear(2, 1)
        self.decoder = decoder()

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.tower(self.enter(x)))

    def enable_gradient_checkpointing(self) -> None:
        self.tower.checkpointed = True


def decoder() -> nn.Module:
    """Two layers that share a weight, and a buffer that no file holds."""
    torch.manual_seed(5)
    part = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    part[1].weight = part[0].weight
    part.register_buffer("positions", torch.arange(3), persistent=False)
    return part


def tower_recipe(folder: Path, *overrides: str) -> Any:
    return recipe(folder, *overrides, model=f"{THIS}:Net", adapter={"rank": 2, "exclude": "decoder"})


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_offloaded_blocks_learn_the_same_to_the_bit(tmp_path: Path, checkpointing: str) -> None:
    train(tower_recipe(tmp_path / "plain", f"train.gradient_checkpointing={checkpointing}"))
    visiting = ["train.offload=blocks", "train.offload_resident=1"]
    run = tower_recipe(tmp_path / "visiting", f"train.gradient_checkpointing={checkpointing}", *visiting)
    told = check(run)
    assert any("3 of 4 blocks stay in main memory" in line for line in told.lines())
    assert any("saves nothing without a GPU" in text for text in told.warnings)
    without = any("offload without gradient_checkpointing" in text for text in told.warnings)
    assert without == (checkpointing == "false")
    train(run)
    plain = learned(tmp_path / "plain")
    for name, tensor in learned(tmp_path / "visiting").items():
        assert torch.equal(tensor, plain[name]), name


def test_there_must_be_blocks_to_offload(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Sequential has 0 blocks"):
        check(recipe(tmp_path, "train.offload=blocks"))
    with pytest.raises(RecipeError, match=r"has 4 blocks.*offload_resident keeps 4"):
        check(tower_recipe(tmp_path, "train.offload=blocks", "train.offload_resident=4"))


def unet() -> tuple[Any, dict[str, Any]]:
    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8,
        attention_head_dim=4, norm_num_groups=4, transformer_layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    text = torch.randn(2, 4, 8)
    return model, {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([5, 500]),
        "encoder_hidden_states": text,
    }


def flux() -> tuple[Any, dict[str, Any]]:
    model = FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=1,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 16, 4), "encoder_hidden_states": torch.randn(2, 4, 8),
        "pooled_projections": torch.randn(2, 8), "timestep": torch.tensor([0.1, 0.5]),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(4, 3),
    }  # fmt: skip
    return model, inputs


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("make", [unet, flux])
def test_a_denoiser_s_blocks_visit_and_its_gradients_are_the_same(make: Any, checkpointing: bool) -> None:
    def gradients(offloaded: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model, inputs = make()
        model.requires_grad_(False)
        if checkpointing:
            model.enable_gradient_checkpointing()
        offload = Offload(blocks_of(model) if offloaded else [], CPU)
        move(model, CPU, offload)
        every = sum(each.numel() * each.element_size() for each in model.parameters())
        assert not offloaded or offload.bytes_at_home > 0.7 * every
        adapter = lorimer.attach(model, LoRA(2), "attention")
        torch.manual_seed(0)
        for parameter in adapter.parameters():
            parameter.data.normal_(std=0.1)
        model.train()
        with offload.sparing():
            output = model(**inputs, return_dict=False)[0]
        output.square().mean().backward()
        return [each.grad for each in adapter.parameters() if each.grad is not None]

    plain, visiting = gradients(False), gradients(True)
    assert len(plain) == len(visiting) > 0
    assert all(torch.equal(left, right) for left, right in zip(plain, visiting, strict=True))


def test_a_parked_part_is_gone_and_comes_back_as_it_was() -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parking = Parking(model, ["decoder"], CPU, lambda name: decoder())
    parking.park()
    assert parking.parked == ("decoder",)
    assert all(each.is_meta for each in (*model.decoder.parameters(), *model.decoder.buffers()))
    with parking.all_there():
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert model.decoder[0].weight is model.decoder[1].weight
        assert torch.equal(model.decoder.positions, torch.arange(3))
    assert parking.parked == ("decoder",) and model.decoder[0].weight.is_meta
    parking.unpark()
    assert not parking.parked and not model.decoder[0].weight.is_meta


def test_a_part_whose_files_changed_is_an_error() -> None:
    parking = Parking(Net(), ["decoder"], CPU, lambda name: nn.Linear(2, 2))
    parking.park()
    with pytest.raises(LorimerError, match="decoder: its files are not what they were"):
        parking.unpark()


def test_parts_that_steps_do_without_are_away_but_in_previews(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away: list[bool] = []

    def preview(self: Any, model: Any, folder: Path, step: int) -> list[Path]:
        away.append(model.decoder[0].weight.is_meta)
        return []

    def loss(self: Any, model: Any, batch: Any) -> Tensor:
        away.append(not model.decoder[0].weight.is_meta)
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    monkeypatch.setattr(Module, "idle_parts", lambda self, model: ("decoder",))
    monkeypatch.setattr(Module, "reload_part", lambda self, name: decoder())
    monkeypatch.setattr(Module, "preview", preview)
    monkeypatch.setattr(Module, "loss", loss)
    train(tower_recipe(tmp_path / "run", "train.preview_every=4", "train.steps=8"))
    assert len(away) == 2 + 8 + 3 and not any(away)


class Broad(nn.Module):
    """Each of the two activations that autograd keeps takes 64 MB at a batch of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4_000_000, bias=False), nn.Linear(4_000_000, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def broad_recipe(folder: Path, *overrides: str) -> Any:
    adapter = {"rank": 1, "targets": "last"}
    return recipe(folder, "train.batch_size=4", *overrides, model=f"{THIS}:Broad", adapter=adapter)


def test_memory_is_told_by_what_takes_it(tmp_path: Path) -> None:
    preflight = check(broad_recipe(tmp_path / "run"))
    memory = preflight.memory
    assert memory.weights == 7 * 4_000_000 * 4
    assert memory.adapter == 2 * (4_000_000 + 1) * 4  # with gradients
    assert memory.optimizer == pytest.approx(2 * 16e6, rel=1e-3)
    assert 50e6 < memory.activations < 250e6
    assert preflight.as_dict()["memory_bytes"] == memory.total
    line = next(line for line in preflight.lines() if "weights 112 MB" in line)
    assert "optimiser 32 MB" in line and "main memory of" in line


def test_a_peak_that_is_over_counts() -> None:
    with peak(CPU) as used:
        torch.ones(50_000_000).sum()
    with peak(CPU) as after:
        pass
    assert used.at_most - used.before > 150e6
    assert after.at_most - after.before < 50e6


def test_advice_comes_near_the_limit_and_names_what_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings(*overrides: str) -> str:
        preflight: Preflight = check(recipe(tmp_path / "run", *overrides))
        return " ".join(preflight.warnings)

    assert warnings() == ""
    monkeypatch.setattr("lorimer.train.preflight.limit", lambda device: 1_000_000)
    text = warnings()
    for field in ("gradient_checkpointing=true", "batch_size=3", "mixed_precision=bf16", "adamw-8bit"):
        assert field in text
    assert text.count("estimated") >= 3
    assert "adamw-8bit" not in warnings("train.optimizer=lion", "train.batch_size=1")


def test_nearly_full_is_a_matter_of_the_sum() -> None:
    parts = {"weights": 500, "adapter": 100, "optimizer": 100, "activations": 150, "other": 0}
    assert not Memory(**parts, limit=1000, kind="").nearly_full
    assert Memory(**{**parts, "other": 51}, limit=1000, kind="").nearly_full


def test_frozen_weights_are_kept_as_asked() -> None:
    types = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    for mixed, dtype in types.items():
        assert TrainSection(mixed_precision=mixed).weights_dtype() == dtype
        assert TrainSection(mixed_precision=mixed, base_dtype="fp16").weights_dtype() == torch.float16
    assert TrainSection(base_dtype="fp32", mixed_precision="bf16").weights_dtype() == torch.float32
