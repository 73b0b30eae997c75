"""LoRA on a small network of one's own, in a plain training loop. Run: python examples/any_module.py

A two-layer network (10 -> 50 -> 1) stands for the pretrained model. Rank-4 adapters beside its two layers
learn 100 random points; the network itself never changes. Every claim that is printed is checked first.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

import lorimer
from lorimer import LoRA


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 1))
    inputs, targets = torch.randn(100, 10), torch.randn(100, 1)
    base_weights = copy.deepcopy(model.state_dict())
    base_output = model(inputs).detach()

    adapter = lorimer.attach(model, LoRA(rank=4), targets="all-linear")
    print(adapter.report())
    for path, layer in adapter.layers.items():
        assert not layer.B.any()
        print(f"  layer {path}: A {tuple(layer.A.shape)}, B {tuple(layer.B.shape)} and all zero")
    assert torch.equal(model(inputs), base_output)
    print(
        "B starts at zero, so the fresh adapter changes nothing: the output equals the base's, bit for bit\n"
    )

    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    for step in range(301):
        loss = nn.functional.mse_loss(model(inputs), targets)
        if step % 50 == 0:
            print(f"step {step:3d}  loss {loss.item():.4f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    trained_output = model(inputs).detach()
    with lorimer.disabled(model):
        assert torch.equal(model(inputs), base_output)
    for name, before in base_weights.items():
        assert torch.equal(model.get_parameter(name), before)
    print(
        "\nthe base is untouched: with the adapter disabled, weights and output are the base's, bit for bit"
    )

    lorimer.merge(model)
    difference = (model(inputs) - trained_output).abs().max().item()
    assert difference < 1e-5
    print(
        f"merged into plain weights, the output is the live adapter's (largest difference {difference:.1e})"
    )
    lorimer.unmerge(model)

    report = adapter.report()
    print(
        f"{report.trainable} numbers were trained beside {report.total} frozen ones "
        f"({report.trainable / report.total:.0%}).\n"
        "That is a large share because the layers are tiny: rank 4 is no low rank for a layer with one\n"
        "output, whose adapter is larger than its weight. Beside a layer of 4096 x 4096 it is 0.2 %."
    )


if __name__ == "__main__":
    main()
