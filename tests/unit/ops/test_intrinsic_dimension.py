"""The figure on problems whose answer is known, and the subspace that it is measured in."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer.errors import LorimerError, UsageError
from lorimer.ops._subspace import Projection, confine, walsh_hadamard


class Sums(nn.Module):
    """The toy problem of arXiv 1804.08838, section 2: 1000 numbers in 10 groups, whose sums must be 1 ... 10.
    Each sum is one condition, so the intrinsic dimension is 10."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1000, dtype=torch.float64))

    def forward(self) -> Tensor:
        return (self.theta.view(10, 100).sum(1) - torch.arange(1.0, 11.0)).square().sum()


def descend(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-14, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model()
        loss.backward()
        return loss

    optimizer.step(closure)


def exp_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return math.exp(-model().item())


def test_ten_conditions_need_ten_dimensions() -> None:
    found = lorimer.intrinsic_dimension(Sums, descend, exp_loss, [4, 16, 64], refine=4)
    assert found.dimension == 10 and found.parameters == 1000
    assert math.isclose(found.full, 1.0, rel_tol=1e-6) and math.isclose(found.threshold, 0.9, rel_tol=1e-6)
    assert set(found.curve) == {4, 16, 9, 10, 12} or found.curve[9] < 0.9 <= found.curve[10]
    assert 64 not in found.curve
    assert "intrinsic dimension 10 of 1,000" in str(found)
    json.dumps(found.as_dict())


def test_a_dimension_that_is_not_reached() -> None:
    found = lorimer.intrinsic_dimension(Sums, descend, exp_loss, [2, 5])
    assert found.dimension is None and list(found.curve) == [2, 5] and "not reached" in str(found)


def digits() -> tuple[Tensor, Tensor]:
    """Ten 8 x 8 patterns with noise: 300 pictures and their classes."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 64, generator=generator)
    labels = torch.arange(10).repeat(30)
    return patterns[labels] + 0.7 * torch.randn(300, 64, generator=generator), labels


def classifier() -> nn.Module:
    """Norms, convolutions, and a bare layer: parameters of every kind move."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


def fit(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    pictures, labels = digits()
    optimizer = torch.optim.Adam(parameters, lr=0.5 if len(parameters) == 1 else 0.02)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pictures[:200]), labels[:200]).backward()
        optimizer.step()


def accuracy(model: nn.Module) -> float:
    pictures, labels = digits()
    with torch.no_grad():
        return (model(pictures[200:]).argmax(1) == labels[200:]).double().mean().item()


def test_a_classifier_needs_a_fraction_of_its_parameters() -> None:
    """Ten classes need at least ten directions; far fewer than the 1,498 parameters suffice."""
    found = lorimer.intrinsic_dimension(classifier, fit, accuracy, [3, 200])
    assert found.full > 0.9
    assert found.dimension == 200 and found.curve[3] < 0.6


def test_the_same_trial_gives_the_same_score() -> None:
    """Whatever was drawn in between, and whatever other dimensions were tried."""
    first = lorimer.intrinsic_dimension(Sums, descend, exp_loss, [4, 9])
    torch.randn(7)
    assert lorimer.intrinsic_dimension(Sums, descend, exp_loss, [9]).curve[9] == first.curve[9]


def test_a_baseline_for_scores_below_zero() -> None:
    def negative_loss(model: nn.Module) -> float:
        with torch.no_grad():
            return -model().item()

    start = negative_loss(Sums())
    found = lorimer.intrinsic_dimension(
        Sums, descend, negative_loss, [8, 10], baseline=start, target=0.999999
    )
    assert found.dimension == 10
    with pytest.raises(LorimerError, match="no better than the baseline"):
        lorimer.intrinsic_dimension(Sums, lambda model, parameters: None, negative_loss, [8], baseline=start)


def test_the_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.randn(2)
    torch.manual_seed(5)
    lorimer.intrinsic_dimension(Sums, descend, exp_loss, [1])
    assert torch.equal(torch.randn(2), expected)


@pytest.mark.parametrize("dimension", [1, 5, 8, 40])
def test_the_projection_is_linear_and_keeps_lengths(dimension: int) -> None:
    projection = Projection(4000, dimension, 0, torch.device("cpu"))
    matrix = torch.stack(
        [projection.rows(row, 0, 4000) for row in torch.eye(dimension, dtype=torch.float64)], dim=1
    )
    v = torch.randn(dimension, dtype=torch.float64)
    assert torch.allclose(projection.rows(v, 0, 4000), matrix @ v)
    assert torch.equal(projection.rows(v, 37, 1203), projection.rows(v, 0, 4000)[37:1203])
    gram = matrix.T @ matrix  # near the identity, as for independent normal entries: 5 / sqrt(4000)
    assert (gram - torch.eye(dimension)).abs().max() < 5 / math.sqrt(4000) * 1.5


def test_walsh_hadamard() -> None:
    matrix = walsh_hadamard(torch.eye(8))
    assert torch.equal(matrix @ matrix, 8 * torch.eye(8))
    assert torch.equal(matrix.abs(), torch.ones(8, 8))


def test_all_parameters_move_and_shared_ones_once() -> None:
    torch.manual_seed(0)
    embed, attention, recurrent = nn.Embedding(5, 8), nn.MultiheadAttention(8, 2), nn.LSTM(8, 8)
    head = nn.Linear(8, 5, bias=False)
    head.weight = embed.weight
    model = nn.ModuleDict({"embed": embed, "attend": attention, "run": recurrent, "head": head})
    attention.in_proj_bias.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tokens = torch.arange(5)

    def forward() -> Tensor:
        x = embed(tokens).unsqueeze(1)
        x = attention(x, x, x)[0]
        return head(recurrent(x)[0])

    start = forward()
    v = confine(model, 6, seed=1)
    assert torch.equal(forward(), start)
    assert [p for p in model.parameters() if p.requires_grad] == [v]
    with torch.no_grad():
        v.add_(torch.randn(6) * 100)
    moved = forward()
    assert not torch.allclose(moved, start)
    moved.sum().backward()
    assert v.grad is not None and bool((v.grad != 0).all())
    lorimer.merge(model, keep_original=False)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name == "attend.in_proj_bias")
    assert head.weight is embed.weight


@pytest.mark.parametrize(
    ("dimensions", "options", "message"),
    [
        ([], {}, "dimensions must be"),
        ([0], {}, "dimensions must be"),
        ([1001], {}, "from 1 to the 1,000 trainable parameters"),
        ([1], {"target": 0.0}, "target must be"),
    ],
)
def test_what_cannot_be_meant(dimensions: list[int], options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lorimer.intrinsic_dimension(Sums, descend, exp_loss, dimensions, **options)  # type: ignore[arg-type]


def test_a_model_that_cannot_be_trained_or_diverges() -> None:
    with pytest.raises(UsageError, match="no trainable parameters"):
        lorimer.intrinsic_dimension(nn.ReLU, fit, accuracy, [1])
    with pytest.raises(LorimerError, match="training diverged"):
        lorimer.intrinsic_dimension(Sums, descend, lambda model: math.nan, [1])
