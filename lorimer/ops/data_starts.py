"""The starts that look at more than a weight: what each asks of the data, and its options.

The maths is in `_start_maths.py`, the watching in `_observe.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorimer.adapters.lora import LoRAAdapter
from lorimer.errors import UsageError, suggest
from lorimer.layers.quantised import is_quantised
from lorimer.layers.sites import Site
from lorimer.ops._observe import can_observe, observed_inputs, summed_gradients
from lorimer.ops._start_maths import (
    Principal,
    add_rows,
    alignment,
    corda_factors,
    eva_factors,
    loftq_factors,
    lora_ga_factors,
    spread_ranks,
)

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Place:
    """A layer whose factors begin anew: the site, and the LoRA there, maybe within another adapter."""

    site: Site
    lora: LoRAAdapter
    wrapped: bool = False

    @property
    def rank(self) -> int:
        return self.lora.method.rank

    def matrix(self) -> Tensor:
        """The frozen weight (out, in), or a stack of them."""
        return self.site.geometry(self.site.layer, self.site.parameter).matrix()


Places = Mapping[str, Place]


@dataclass(frozen=True)
class Factors:
    """Where a LoRA begins: A (k, in) and B (out, k), or stacks of them; k is at most the rank, which is
    `rank` from now on where that is given."""

    A: Tensor
    B: Tensor
    rank: int | None = None


@dataclass(frozen=True)
class Run:
    """How to show data to the model, the adapters off."""

    model: nn.Module
    batches: Iterable[Any]
    forward: Forward
    rows: Callable[[Any], Tensor] | None

    def inputs(self, places: Places, see: Callable[[str, Tensor], bool]) -> None:
        """Show all batches; `see(path, rows)` is given what goes into each layer (see `observed_inputs`) and
        says whether it has seen enough of it. Ends early when all have."""
        blind = [path for path, place in places.items() if not can_observe(place.site)]
        if blind:
            raise UsageError(
                f"{_some(blind)}: this start needs to see what goes into a layer, and does so for Linear and "
                "convolutions; exclude the others from the targets"
            )
        waiting, batch = set(places), None

        def seen(path: str, rows: Tensor) -> None:
            if see(path, rows):
                waiting.discard(path)

        def mask() -> Tensor | None:
            return None if self.rows is None else self.rows(batch)

        with observed_inputs({path: place.site for path, place in places.items()}, seen, mask) as stop:
            for batch in self.batches:
                with torch.no_grad():
                    self.forward(self.model, batch)
                for path in places.keys() - waiting:
                    stop(path)
                if not waiting:
                    break

    def gradients(self, places: Places) -> dict[str, Tensor]:
        """Path -> the loss's gradient for the weight (out, in), summed over all batches, on the CPU."""
        with summed_gradients({path: place.site for path, place in places.items()}) as sums:
            for batch in self.batches:
                with torch.enable_grad():
                    output = self.forward(self.model, batch)
                    loss = getattr(output, "loss", output)
                    if not isinstance(loss, Tensor) or loss.numel() != 1:
                        raise UsageError(
                            "this start needs the loss: forward(model, batch) must return it as one number, "
                            "or something that has it as `loss`"
                        )
                    loss.backward()
        return sums


class DataStart(ABC):
    """A start that looks at more than the weight."""

    name: ClassVar[str]
    shifts: ClassVar[bool] = True  # B·A is not zero, and the update counts from it
    keeps_output: ClassVar[bool] = True

    @abstractmethod
    def factors(self, places: Places, run: Run) -> dict[str, Factors]:
        """Path -> where to begin."""


@dataclass(frozen=True)
class Eva(DataStart):
    """A = the directions in which a layer's inputs vary most, B = 0 (arXiv 2410.07170).

    Attributes:
        rho: ranks are shared out among layers by what they explain, up to rho times the rank, in all as many
            as before; 1 leaves every layer its rank.
        settled: a layer whose directions turn less than this cosine from batch to batch has seen enough.
    """

    name: ClassVar[str] = "eva"
    shifts: ClassVar[bool] = False

    rho: float = 1.0
    settled: float = 0.99

    def __post_init__(self) -> None:
        if self.rho < 1.0 or not 0.0 < self.settled <= 1.0:
            raise UsageError("eva: rho must be at least 1, and settled above 0 and at most 1")

    def factors(self, places: Places, run: Run) -> dict[str, Factors]:
        if self.rho > 1.0 and any(place.wrapped for place in places.values()):
            raise UsageError("eva: ranks can change in plain LoRA alone; set rho = 1")
        most = {path: int(self.rho * place.rank) for path, place in places.items()}
        inputs: dict[str, Principal] = {}

        def see(path: str, rows: Tensor) -> bool:
            before = inputs.get(path)
            inputs[path] = add_rows(before, rows, most[path])
            return before is not None and alignment(before, inputs[path], most[path]) >= self.settled

        run.inputs(places, see)
        _require_all(places, inputs, "no input reached")
        ranks = {path: place.rank for path, place in places.items()}
        if self.rho > 1.0:
            ranks = spread_ranks(
                {path: _explained(own, most[path]) for path, own in inputs.items()}, sum(ranks.values())
            )
        return {
            path: Factors(*eva_factors(own, ranks[path], places[path].lora.B.shape[0]), ranks[path])
            for path, own in inputs.items()
        }


@dataclass(frozen=True)
class CorDA(DataStart):
    """A part of the weight, chosen by what the layer's inputs use of it (arXiv 2406.05223).

    Attributes:
        mode: "instruction-previewed" trains the part that the data uses most, so it is learned fast;
            "knowledge-preserved" trains the part that the data uses least, so what it shows is kept.
    """

    name: ClassVar[str] = "corda"

    mode: Literal["instruction-previewed", "knowledge-preserved"] = "instruction-previewed"

    def __post_init__(self) -> None:
        modes = ("instruction-previewed", "knowledge-preserved")
        if self.mode not in modes:
            raise UsageError(f"corda: no mode is called {self.mode!r}.{suggest(self.mode, modes)}")

    def factors(self, places: Places, run: Run) -> dict[str, Factors]:
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = dict.fromkeys(places, 0)

        def see(path: str, rows: Tensor) -> bool:
            own = (rows.T @ rows).cpu()
            sums[path] = sums[path] + own if path in sums else own
            counts[path] += len(rows)
            return False

        run.inputs(places, see)
        _require_all(places, sums, "no input reached")
        preserve = self.mode == "knowledge-preserved"

        def factors(path: str, place: Place) -> Factors:
            weight, covariance = place.matrix(), sums.pop(path) / counts[path]
            on_device = covariance.to(weight.device)
            return Factors(*corda_factors(weight, on_device, place.rank, place.lora.scale, preserve=preserve))

        return _for_each(places, factors)


@dataclass(frozen=True)
class LoraGA(DataStart):
    """Factors along the gradient that full training would begin with (arXiv 2407.05000).

    Attributes:
        gamma: the larger, the smaller the factors.
    """

    name: ClassVar[str] = "lora-ga"

    gamma: float = 16.0

    def __post_init__(self) -> None:
        if not self.gamma > 0.0:
            raise UsageError(f"lora-ga: gamma must be above 0, not {self.gamma!r}")

    def factors(self, places: Places, run: Run) -> dict[str, Factors]:
        gradients = run.gradients(places)
        _require_all(places, gradients, "no gradient reached")

        def factors(path: str, place: Place) -> Factors:
            gradient = gradients.pop(path).to(place.lora.A.device)
            *stack, _, _ = gradient.shape
            each = [
                lora_ga_factors(own, place.rank, self.gamma)
                for own in gradient.reshape(-1, *gradient.shape[-2:])
            ]
            A, B = (torch.stack(parts) for parts in zip(*each, strict=True))
            return Factors(A.reshape(*stack, *A.shape[1:]), B.reshape(*stack, *B.shape[1:]))

        return _for_each(places, factors)


@dataclass(frozen=True)
class LoftQ(DataStart):
    """What quantisation took from the weights (arXiv 2310.08659): Q + s·B·A is as near as can be to W.

    The quantised base itself stays, so this is LoftQ with one iteration. The fresh adapter changes the
    output, towards that of the model before quantisation.

    Attributes:
        original: the model before quantisation, or its parameters by name.
    """

    name: ClassVar[str] = "loftq"
    shifts: ClassVar[bool] = False
    keeps_output: ClassVar[bool] = False

    original: nn.Module | Mapping[str, Tensor]

    def factors(self, places: Places, run: Run) -> dict[str, Factors]:
        known = self.original
        named = dict(known.named_parameters()) if isinstance(known, nn.Module) else known

        def factors(path: str, place: Place) -> Factors:
            site = place.site
            geometry, name = site.geometry(site.layer, site.parameter), site.full_name
            if not is_quantised(site.layer):
                raise UsageError("is not quantised, so loftq has nothing to mend; choose another start")
            quantised = place.matrix()
            if name not in named or named[name].numel() != quantised.numel():
                has = f"of shape {tuple(named[name].shape)}" if name in named else "missing"
                raise UsageError(f"in the original {name!r} is {has}, not {tuple(quantised.shape)}")
            original = geometry.to_matrix(named[name].detach()).to(quantised.device)
            return Factors(*loftq_factors(original, quantised, place.rank, place.lora.scale))

        return _for_each(places, factors)


STARTS: dict[str, type[DataStart]] = {start.name: start for start in (Eva, CorDA, LoraGA, LoftQ)}


def data_start(name: str, options: Mapping[str, Any] | None = None) -> DataStart:
    """The start of that name.

    Raises:
        UsageError: there is none, or it has no such options.
    """
    if name not in STARTS:
        raise UsageError(f"no start is called {name!r}.{suggest(name, STARTS)} Known: {', '.join(STARTS)}")
    try:
        return STARTS[name](**options or {})
    except TypeError as error:
        raise UsageError(f"start {name!r} does not take {dict(options or {})!r}: {error}") from error


def _for_each(places: Places, factors: Callable[[str, Place], Factors]) -> dict[str, Factors]:
    """Path -> factors(path, place), in errors with the path."""
    found = {}
    for path, place in places.items():
        try:
            found[path] = factors(path, place)
        except UsageError as error:
            raise UsageError(f"{path!r}: {error}") from error
    return found


def _explained(inputs: Principal, rank: int) -> Tensor:
    """The share of a layer's inputs that each of the first `rank` directions explains, falling."""
    return inputs.singular[:rank].square() / max(inputs.spread, 1e-30)


def _require_all(places: Places, found: Collection[str], what: str) -> None:
    lacking = [path for path in places if path not in found]
    if lacking:
        raise UsageError(f"{what} {_some(lacking)}; show more data, or exclude them from the targets")


def _some(paths: list[str]) -> str:
    return ", ".join(map(repr, paths[:5])) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
