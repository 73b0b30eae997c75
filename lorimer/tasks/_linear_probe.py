"""A classifier's head that begins as a linear probe: the best linear layer on what the frozen network gives.

    W, b = argmin  sum_i c_i loss(W x_i + b, y_i)  +  |W diag(deviation of x)|^2 / (2 C)

A random head first bends what the network knows already; one that is right from the start does not, and
training begins where linear probing ends (Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.attachment.attached import AttachedAdapter
from lorimer.errors import RecipeError

C = 0.01  # the variance of weights on features of deviation 1 that is expected; as scikit-learn has it
EXAMPLES = 10_000
KNOWN = "the head has learned these labels before, and begins as it is"
_ITERATIONS = 300
# Of the largest logit: bfloat16 and packed rows round otherwise; a network that does more differs by more.
_ROUNDING = 0.02


@dataclass(frozen=True)
class Seen:
    """What the frozen network gives its head, on the CPU.

    Attributes:
        features: (N, width), float32.
        target: of each example, as losses take it.
        weight: (N,) what each counts.
    """

    features: Tensor
    target: Tensor
    weight: Tensor


LossOf = Callable[[Tensor, Tensor], Tensor]  # logits and targets -> (N,)
Run = Callable[[Any], Tensor]  # a batch -> (N, outputs), which the head gave


def begin_head(
    adapter: AttachedAdapter,
    heads: Sequence[str],
    outputs: int,
    batches: Iterable[Any],
    run: Run,
    loss_of: LossOf,
) -> str:
    """Let the head of a classifier, which the adapter trains in full, begin as a linear probe; what was done,
    for people.

    Args:
        heads: paths of modules, one of which is, or holds, the linear layer that gives the outputs.
        batches: mappings with "label" and "weight", on the device; up to `EXAMPLES` examples are seen.

    Raises:
        RecipeError: there is no one such layer, or the network does more with what it gives.
    """
    path = _linear_in(adapter.model, heads, outputs)
    trained = dict(adapter.named_parameters())
    biased = f"{path}.bias.value" in trained
    seen, last = _seen(adapter.model.get_submodule(path), batches, run)
    weight, bias = fit(seen, loss_of, outputs, biased)
    with torch.no_grad():
        trained[f"{path}.value"].copy_(weight)
        if biased:
            trained[f"{path}.bias.value"].copy_(bias)
        given = run(last).cpu()
    expected = seen.features[-len(given) :] @ weight.T + bias
    if not torch.allclose(given, expected, rtol=0.0, atol=_ROUNDING * expected.abs().max().item() + 1e-6):
        raise RecipeError(
            f"objective.head_start: {path} does not give the outputs by itself; leave it random"
        )
    return f"{path} begins as a linear probe of {len(seen.features):,} examples"


def fit(seen: Seen, loss_of: LossOf, outputs: int, biased: bool = True) -> tuple[Tensor, Tensor]:
    """The best linear layer, its weight (outputs, width) and bias (outputs,), of zeros unless `biased`."""
    features = seen.features
    centre = features.mean(0) if biased else torch.zeros(features.shape[1])
    deviation = features.std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * features.abs().max(), deviation, 1.0)
    normal = (features - centre) / scale
    weight = torch.zeros(outputs, features.shape[1], requires_grad=True)
    bias = torch.zeros(outputs, requires_grad=biased)
    learned = [weight, bias] if biased else [weight]
    optimizer = torch.optim.LBFGS(learned, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        errors = loss_of(normal @ weight.T + bias, seen.target) * seen.weight
        value: Tensor = errors.sum() + weight.square().sum() / (2.0 * C)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(objective)
    found = weight.detach() / scale
    return found, bias.detach() - found @ centre


def _seen(head: nn.Module, batches: Iterable[Any], run: Run) -> tuple[Seen, Any]:
    """What the head is given for these batches, and the last of them."""
    features, targets, weights, batch = [], [], [], None
    hook = head.register_forward_hook(lambda module, given, result: given[0])  # run gives what it was given
    try:
        with torch.no_grad():
            for batch in batches:
                features.append(run(batch).float().cpu())
                targets.append(batch["label"].cpu())
                weights.append(batch["weight"].cpu())
                if sum(map(len, features)) >= EXAMPLES:
                    break
    finally:
        hook.remove()
    return Seen(torch.cat(features), torch.cat(targets), torch.cat(weights)), batch


def _linear_in(model: nn.Module, heads: Sequence[str], outputs: int) -> str:
    """The path of the one linear layer with so many outputs in the heads."""
    found = [
        path
        for path, module in model.named_modules()
        if any(path == head or path.startswith(f"{head}.") for head in heads)
        and isinstance(module, nn.Linear)
        and module.out_features == outputs
    ]
    if len(found) != 1:
        raise RecipeError(
            f"objective.head_start: the head has {len(found)} linear layers of {outputs} outputs, and a "
            "probe is one; leave it random"
        )
    return found[0]
