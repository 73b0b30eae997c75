"""Files for every family, loaded by diffusers and PEFT: their fused weights equal our merged ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import LoRA, registry
from lorimer.tasks._diffusers_folder import quiet
from tests.tiny_families import CASES
from tests.tolerances import SAME_UPDATE, relative_difference

FAMILIES = registry.names("family")
# transformers 5 warns when PEFT asks it for a name that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
# What diffusers reads of kohya's files: it splits FLUX's single blocks at the real model's width alone, loses
# layers around the blocks, and reads no such files for SD 3 and Lumina 2.
_BLOCKS = r"transformer\.transformer_blocks\.|text_encoder\."
READ_FROM_KOHYA = {
    "sd1": "",
    "sd2": "",
    "sdxl": "",
    "flux": _BLOCKS,
    "chroma": _BLOCKS,
    "flux2-klein": r".*_blocks\.",
    "qwen-image": "",
    "z-image": r".*(layers|refiner)\.",
}


class Adaptable(nn.Module):
    """The networks of a pipeline that diffusers loads adapters onto: the denoiser and CLIP."""

    def __init__(self, family: str) -> None:
        super().__init__()
        plugin = registry.get("family", family)
        torch.manual_seed(0)
        with quiet():
            self.parts: dict[str, Any] = CASES[family]()
        clip = [name for name in plugin.text_encoders if plugin.parts[name].cls.startswith("CLIPText")]
        self.family = family
        self.components = (plugin.denoiser, *clip)
        for name in self.components:
            self.add_module(name, self.parts[name])

    def weights(self) -> dict[str, Tensor]:
        """Weight of every layer that can be adapted."""
        layers = self.named_modules()
        return {path: layer.weight.detach().clone() for path, layer in layers if _is_adaptable(path, layer)}


def _is_adaptable(path: str, layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Conv2d) and "text_projection" not in path


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_loads_our_file(family: str, format: str, tmp_path: Path) -> None:
    import diffusers

    if format == "kohya" and family not in READ_FROM_KOHYA:
        pytest.skip("diffusers does not read such files")
    ours, theirs = Adaptable(family), Adaptable(family)
    base = ours.weights()
    pattern = READ_FROM_KOHYA[family] if format == "kohya" else ""
    targets = [path for path in base if re.match(pattern, path)]
    adapt(ours, targets)
    lorimer.save(lorimer.attached(ours)["default"], tmp_path / "adapter.safetensors", format=format)
    lorimer.merge(ours)
    plugin = registry.get("family", family)
    with quiet():
        pipeline = getattr(diffusers, plugin.pipeline)(**theirs.parts, **plugin.pipeline_options)
        pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
        pipeline.fuse_lora(components=list(theirs.components))
        pipeline.unload_lora_weights()
    assert_same_updates(theirs, ours, base, targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_our_folders(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    ours, theirs = Adaptable(family), Adaptable(family)
    base = ours.weights()
    adapt(ours, [*base])
    lorimer.save(lorimer.attached(ours)["default"], tmp_path / "adapter", format="peft")
    lorimer.merge(ours)
    for name in theirs.components:
        loaded = PeftModel.from_pretrained(getattr(theirs, name), tmp_path / "adapter" / name)
        loaded.merge_and_unload()
    assert_same_updates(theirs, ours, base, [*base])


def adapt(model: Adaptable, targets: list[str]) -> None:
    """An adapter with alpha != rank, off its start."""
    adapter = lorimer.attach(model, LoRA(rank=2, alpha=3.0), targets)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape))


def assert_same_updates(
    found: Adaptable, wanted: Adaptable, base: dict[str, Tensor], targets: list[str]
) -> None:
    left, right = found.weights(), wanted.weights()
    for path in targets:
        update = right[path] - base[path]
        assert relative_difference(left[path] - base[path], update) < 10 * SAME_UPDATE, path
