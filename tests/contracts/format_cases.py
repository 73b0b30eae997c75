"""Adapters of any method on models made of the names that real ones have, for the format contracts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import lorimer
from lorimer import AdapterState
from lorimer.adapters._base import Method
from lorimer.errors import UsageError
from tests.contracts.method_cases import METHODS, make


def tree(leaves: dict[str, nn.Module]) -> nn.Module:
    """A module with the given layers at the given paths."""
    root = nn.Module()
    for path, layer in leaves.items():
        parent, *names = root, *path.split(".")
        for name in names[:-1]:
            if name not in parent._modules:
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(names[-1], layer)
    return root


def plain_model() -> nn.Module:
    """Layers whose names have led others to corrupt keys: peft#2772, #3584, #3282."""
    return tree(
        {
            "fc": nn.Linear(6, 5),
            "decoder.fc": nn.Linear(5, 6),
            "weight.weight_proj": nn.Linear(4, 4),
            "mlp.lora_A": nn.Linear(4, 3),
            "mlp.lora_A_weight": nn.Linear(3, 4),
            "layers.1.q_proj": nn.Linear(6, 6),
            "layers.11.q_proj": nn.Linear(6, 6),
            "layers.1.alpha": nn.Linear(6, 2),
            "conv": nn.Conv2d(3, 4, 3),
        }
    )


def picture_model() -> nn.Module:
    """A few of Stable Diffusion's layers, under its names."""
    model = tree(
        {
            "unet.conv_in": nn.Conv2d(4, 6, 3),
            "unet.time_embedding.linear_1": nn.Linear(5, 6),
            "unet.down_blocks.0.attentions.0.proj_in": nn.Conv2d(6, 6, 1),
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": nn.Linear(6, 6),
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": nn.Linear(4, 6),
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": nn.Linear(6, 6),
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj": nn.Linear(6, 8),
            "unet.down_blocks.0.resnets.1.conv_shortcut": nn.Conv2d(6, 4, 1),
            "unet.down_blocks.0.resnets.1.time_emb_proj": nn.Linear(6, 4),
            "unet.up_blocks.1.upsamplers.0.conv": nn.Conv2d(4, 4, 3),
            "text_encoder.encoder.layers.0.self_attn.q_proj": nn.Linear(6, 6),
            "text_encoder.encoder.layers.11.mlp.fc1": nn.Linear(6, 8),
        }
    )
    model.components = ("unet", "text_encoder")  # type: ignore[assignment]
    model.family = "sd1"  # type: ignore[assignment]
    return model


def grouped_model() -> nn.Module:
    """A grouped convolution, which no format but our own can hold."""
    return tree({"stem.conv": nn.Conv2d(4, 6, 3, groups=2), "head.fc": nn.Linear(6, 2)})


def headed_model() -> nn.Module:
    """A classifier: a head and a norm that are trained in full beside the adapter."""
    return tree(
        {
            "encoder.fc": nn.Linear(6, 6),
            "encoder.out": nn.Linear(6, 6),
            "norm": nn.LayerNorm(6),
            "score.classifier": nn.Linear(6, 3),
        }
    )


def language_model() -> nn.Module:
    """The projections of a small Llama, two heads of keys and values for four of queries."""
    block = {
        "self_attn.q_proj": nn.Linear(8, 16),
        "self_attn.k_proj": nn.Linear(8, 8),
        "self_attn.v_proj": nn.Linear(8, 8),
        "self_attn.o_proj": nn.Linear(16, 8),
        "mlp.gate_proj": nn.Linear(8, 12),
        "mlp.up_proj": nn.Linear(8, 12),
        "mlp.down_proj": nn.Linear(12, 8),
    }
    layers = {f"model.layers.{number}.{name}": layer for number in (0, 11) for name, layer in block.items()}
    return tree({**layers, "lm_head": nn.Linear(8, 20)})


MODELS = {
    "plain": plain_model,
    "picture": picture_model,
    "grouped": grouped_model,
    "headed": headed_model,
    "language": language_model,
}
FULL = {"headed": ["score", "norm"]}  # what is trained in full


def adapter_state(label: str, model: str, dtype: torch.dtype = torch.float32) -> AdapterState:
    """An adapter of a method case off its start, with several ranks and alphas none of which are equal, and a
    head trained in full beside it."""
    made, method = MODELS[model](), METHODS[label] if label in METHODS else make(label)
    method = method.with_rank(2, 3.0) if method.ranked else method
    layers = _adaptable(made, method)
    patterns: dict[str, Any] = {
        "rank_pattern": {layers[len(layers) > 1]: 1, layers[-1]: 3},
        "alpha_pattern": {layers[len(layers) > 1]: 0.1, layers[3 % len(layers)]: 16},
    }
    attached = lorimer.attach(
        made, method, layers, full=FULL.get(model, ()), dtype=dtype, **patterns if method.ranked else {}
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = attached.state()
    state.metadata.update({**FACTS, **(BASE_FACTS if model == "language" else {})})
    return state


BASE_FACTS = {"architecture": "llama", "attention_heads": "4", "key_value_heads": "2"}
FACTS: dict[str, str] = {
    "base_model": "org/some-model",
    "title": "Ink «Tusche» 水墨",
    "trigger": "in ink style",
    "resolution": "512",
    "steps": "400",
}


def _adaptable(model: nn.Module, method: Method) -> list[str]:
    """The layers that the method can adapt at every rank that is used here."""
    every = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    every = [path for path in every if not path.startswith("score.")]
    fitting = []
    for path in every:
        try:
            for rank in {1, 2, 3} if method.ranked else {1}:
                lorimer.attach(model, method.with_rank(rank, method.alpha), path)
                lorimer.detach(model)
            fitting.append(path)
        except UsageError:
            continue
    return fitting


def tensors_of(state: AdapterState) -> dict[str, Any]:
    """Everything in a state that a file must keep, by layer or parameter."""
    layers = {
        path: (layer.alpha, layer.rank, layer.groups, layer.stacked, layer.kind, layer.tensors)
        for path, layer in state.layers.items()
    }
    return {**layers, **{name: (1.0, each.rows, {"value": each.value}) for name, each in state.full.items()}}
