"""The frozen beginning of a network is found in every kind of network, and replaying it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import LoRA
from lorimer.layers.prefix import NoPrefixError, Prefix, find_prefix

Batch = dict[str, Tensor]
SIDE, TOKENS = 32, 7
ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]}


def pictures(count: int) -> Batch:
    return {"pixel_values": torch.randn(count, 3, SIDE, SIDE)}


def texts(count: int) -> Batch:
    return {"input_ids": torch.randint(1, 50, (count, TOKENS))}


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**ENCODER, image_size=SIDE, patch_size=8))


def swin() -> Any:
    from transformers import SwinConfig, SwinForImageClassification

    sizes: dict[str, Any] = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
    return SwinForImageClassification(SwinConfig(image_size=SIDE, patch_size=4, **sizes))


def convnext() -> Any:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(ConvNextConfig(**STAGES))


def resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(embedding_size=8, layer_type="basic", **STAGES))


def yolos() -> Any:
    from transformers import YolosConfig, YolosForObjectDetection

    sizes: dict[str, Any] = {"image_size": [SIDE, SIDE], "patch_size": 8, "num_detection_tokens": 5}
    return YolosForObjectDetection(YolosConfig(**ENCODER, **sizes))


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**ENCODER, vocab_size=50))


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(**ENCODER, vocab_size=50, pad_token_id=0, use_cache=False)
    return LlamaForSequenceClassification(config)


# (model, its inputs, the block that is adapted, what is stored)
NETWORKS: list[tuple[Callable[[], Any], Callable[[int], Batch], str, str]] = [
    (vit, pictures, "layers.2.", "vit.layers.1"),
    (swin, pictures, "layers.1.blocks.1.", "swin.encoder.layers.1.blocks.0"),
    (convnext, pictures, "stages.2.layers.1.", "convnext.encoder.stages.2.layers.0"),
    (resnet, pictures, "stages.3.", "resnet.encoder.stages.2"),
    (yolos, pictures, "layer.2.", "vit.encoder.layer.1"),
    (bert, texts, "layer.2.", "bert.encoder.layer.1"),
    (llama, texts, "layers.2.", "model.layers.1"),
]


def adapted(make: Callable[[], Any], block: str) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    names = [
        name
        for name, module in model.named_modules()
        if block in name and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    adapter = lorimer.attach(model, LoRA(2), names)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.01)
    return model


def found(model: Any, batch: Batch) -> Prefix:
    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(**batch)[0].float().square().sum()

    return find_prefix(model, run, len(batch["pixel_values"]) if "pixel_values" in batch else None)


@pytest.mark.parametrize(
    ("make", "inputs", "block", "stored"), NETWORKS, ids=[each[0].__name__ for each in NETWORKS]
)
def test_replayed_is_computed(
    make: Callable[[], Any], inputs: Callable[[int], Batch], block: str, stored: str
) -> None:
    """To the bit, in output and gradients, for another batch than that by which it was found, of pictures
    that are gone."""
    model = adapted(make, block)
    prefix = found(model, inputs(4))
    assert list(prefix.stored) == [stored] and not prefix.skipped.keys() & prefix.stored.keys()
    batch = inputs(3)
    parameters = [each for each in model.parameters() if each.requires_grad]

    def outcome(batch: Batch) -> tuple[Tensor, ...]:
        output = model(**batch)[0]
        return (output, *torch.autograd.grad(output.square().sum(), parameters))

    wanted = outcome(batch)
    states = prefix.record(lambda: model(**batch))
    gone = {name: each * torch.nan if each.is_floating_point() else each for name, each in batch.items()}
    with prefix.replayed(states, 3 if inputs is pictures else None):
        replayed = outcome(gone)
    assert all(map(torch.equal, replayed, wanted))
    assert all(map(torch.equal, outcome(batch), wanted)), "replaying leaves nothing behind"


def test_its_digest_is_that_of_the_frozen_beginning() -> None:
    """The adapter changes in training, and the head is new in every run: neither counts."""
    model = adapted(vit, "layers.2.")
    prefix = found(model, pictures(2))
    before = prefix.digest()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or name.startswith("classifier"):
                parameter.add_(1.0)
    assert prefix.digest() == before
    for name in ("vit.layers.0.attention.q_proj.weight", "vit.embeddings.cls_token"):
        with torch.no_grad():
            tensor = dict(model.named_parameters()).get(name)
            assert tensor is not None, name
            tensor.add_(1e-3)
        assert prefix.digest() != before
        before = prefix.digest()


class Skipping(nn.Module):
    """The second layer's input comes back behind the adapted one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        first = self.drop(self.first(x))
        return (self.third(self.second(first)) + first,)


def test_what_is_read_later_is_stored_too() -> None:
    torch.manual_seed(0)
    model = Skipping()
    lorimer.attach(model, LoRA(2), ["third"])
    batch = {"x": torch.randn(3, 4)}
    prefix = find_prefix(model, lambda seed: model(**batch)[0].sum(), 3)
    assert list(prefix.stored) == ["first", "second"]


def test_where_there_is_none_it_says_why() -> None:
    batch = {"x": torch.randn(3, 4)}
    model = Skipping()
    lorimer.attach(model, LoRA(2), ["first"])
    with pytest.raises(NoPrefixError, match="nothing that multiplies"):
        find_prefix(model, lambda seed: model(**batch)[0].sum(), 3)
    restless = Skipping().train()
    restless.first = nn.Sequential(restless.first, nn.Dropout(0.5))  # type: ignore[assignment]
    lorimer.attach(restless, LoRA(2), ["third"])

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return restless(**batch)[0].sum()

    with pytest.raises(NoPrefixError, match=r"train\.base_dropout"):
        find_prefix(restless, run, 3)
