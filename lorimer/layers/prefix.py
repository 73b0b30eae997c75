"""The frozen part of a network that runs before anything in it trains: found, recorded, replayed.

    embeddings | block 0 | block 1 | block 2 | block 3 (adapted) | ... | head
    `-- skipped ---------------------' stored  `-- runs as ever

What modules in front of the first trained layer give never changes for the same input. Those whose output the
rest of the network reads are `stored`; the others need not run, and in their place stands NaN, so that what
would leak from there shows in the loss instead of spoiling it. Which is which is found by trying: a module
that can be NaN without a trace is not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lorimer.layers.host import Host
from lorimer.layers.sites import own_modules

Run = Callable[[int], Tensor]
Forward = Callable[..., Any]
# What networks raise that get NaN, or tensors of another shape, where they read a module's output.
_LOOKING_BACK = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class NoPrefixError(Exception):
    """There is nothing to store; the message says why, for a person."""


class _Reached(Exception):
    """No error: the way out of a forward that has given what was asked."""


@dataclass(frozen=True)
class Output:
    """What a module gave: its tensors, and what holds them together.

    Attributes:
        leaves: of everything in it whether it is a tensor, and what it is where not.
        follows: of each tensor whether it has the shape of the module's first input, so that it will have it
            for other inputs too.
    """

    tensors: tuple[Tensor, ...]
    leaves: tuple[Any, ...]
    spec: TreeSpec
    follows: tuple[bool, ...]

    @staticmethod
    def of(value: Any, first: Any) -> Output:
        """Copies, since what follows may write to them."""
        leaves, spec = tree_flatten(value)
        tensors = tuple(each.detach().clone() for each in leaves if isinstance(each, Tensor))
        shape = first.shape if isinstance(first, Tensor) else None
        kept = tuple(None if isinstance(each, Tensor) else each for each in leaves)
        places = tuple(isinstance(each, Tensor) for each in leaves)
        return Output(
            tensors,
            tuple(zip(places, kept, strict=True)),
            spec,
            tuple(each.shape == shape for each in tensors),
        )

    def can_be_missing(self, size: int | None) -> bool:
        """Whether all of it can be NaN, and its shape be told beforehand, for a batch of `size`."""
        shaped = self.follows if size is None else [each.shape[:1] == (size,) for each in self.tensors]
        return bool(self.tensors) and all(shaped) and all(each.is_floating_point() for each in self.tensors)

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """The same thing with other tensors."""
        rest = iter(tensors)
        return tree_unflatten(
            [next(rest) if is_tensor else kept for is_tensor, kept in self.leaves], self.spec
        )

    def missing(self, size: int | None, first: Any) -> Any:
        """The same thing of NaN, for a batch of `size` and a module whose first input is `first`."""
        shapes = (
            first.shape if follows or size is None else (size, *each.shape[1:])
            for each, follows in zip(self.tensors, self.follows, strict=True)
        )
        return self.filled(
            [
                each.new_full((), torch.nan).expand(shape)
                for each, shape in zip(self.tensors, shapes, strict=True)
            ]
        )


@dataclass(frozen=True)
class Prefix:
    """The frozen beginning of one model.

    Attributes:
        stored: paths of the modules whose outputs the rest reads, in the order of their calls.
        skipped: paths of those that then need not run.
        before: paths of all that ran before the first layer that trains.
    """

    model: nn.Module
    stored: Mapping[str, Output]
    skipped: Mapping[str, Output]
    before: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 of what the prefix consists of: its modules' types and tensors, and which are stored."""
        digest = hashlib.sha256(json.dumps(list(self.stored)).encode())
        tensors = self.model.state_dict(keep_vars=True)
        holders = {path.rpartition(".")[0] for path in self.before}
        for path in self.before:
            digest.update(f"{path} {type(self.model.get_submodule(path)).__qualname__}".encode())
        for name, tensor in sorted(tensors.items()):
            within = any(name.startswith(f"{path}.") for path in self.before)
            if within or (name.rpartition(".")[0] in holders and not tensor.requires_grad):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def record(self, run: Callable[[], Any]) -> tuple[Tensor, ...]:
        """The tensors that `run`, a forward of the model, gives at the stored modules; it goes no further."""
        found: dict[str, Output] = {}

        def forward(path: str, real: Forward, *inputs: Any, **named: Any) -> Any:
            value = real(*inputs, **named)
            found[path] = Output.of(value, _first(inputs, named))
            if len(found) == len(self.stored):
                raise _Reached
            return value

        forwards = {path: partial(forward, path) for path in self.stored}
        with suppress(_Reached), _instead(self.model, forwards):
            run()
        return tuple(tensor for path in self.stored for tensor in found[path].tensors)

    @contextmanager
    def replayed(self, states: Sequence[Tensor], size: int | None) -> Iterator[None]:
        """Within, the model's forward begins behind the prefix.

        Args:
            states: as `record` gives them for the same batch.
            size: as for `find_prefix`, of that batch.
        """
        rest = iter(states)
        forwards = {
            path: _giving(output.filled([next(rest) for _ in output.tensors]))
            for path, output in self.stored.items()
        } | {path: _missing(output, size) for path, output in self.skipped.items()}
        with _instead(self.model, forwards):
            yield


def find_prefix(model: nn.Module, run: Run, size: int | None, longer: Run | None = None) -> Prefix:
    """The prefix of a model, as its forward in `run` shows.

    Args:
        run: seed -> the loss of one batch, always the same one; all that is random follows from the seed.
        size: of that batch, with which tensors begin; None where they are laid out otherwise.
        longer: the same for a batch of one example more, which tells sizes that follow the batch's from those
            that happen to be equal.

    Raises:
        NoPrefixError: nothing worth storing runs before what trains, or it is not the same each time.
    """
    loss, before, called = _watch(model, partial(run, 0), size)
    if longer is not None and size is not None:
        following = _watch(model, partial(longer, 0), size + 1)[1]
        before = {path: output for path, output in before.items() if path in following}
    if not before:
        raise NoPrefixError("nothing that multiplies runs before the first layer that trains")
    other_seed = _watch(model, partial(run, 1), size)[1]
    if any(not _equal(before[path], other_seed.get(path)) for path in before):
        raise NoPrefixError("the frozen layers draw random numbers; set train.base_dropout to false")

    def is_enough(stored: Collection[str]) -> bool:
        """Whether the loss is the same, to the bit, where the rest of the prefix is NaN."""
        prefix = _prefix(model, before, stored, called)
        states = [tensor.clone() for path in prefix.stored for tensor in before[path].tensors]
        try:
            with torch.no_grad(), prefix.replayed(states, size):
                return torch.equal(run(0).detach(), loss.detach())
        except _LOOKING_BACK:
            return False

    if not is_enough(before):
        raise NoPrefixError("the loss is not the same each time, or the model writes to what it has computed")
    read = [path for path in before if not is_enough(before.keys() - {path})]
    if not read or not is_enough(read):
        raise NoPrefixError("what the rest of the network reads of the frozen layers cannot be told")
    return _prefix(model, before, read, called)


def _prefix(
    model: nn.Module, before: Mapping[str, Output], stored: Collection[str], called: tuple[str, ...]
) -> Prefix:
    return Prefix(
        model,
        {path: output for path, output in before.items() if path in stored},
        {path: output for path, output in before.items() if path not in stored},
        called,
    )


def _equal(one: Output, other: Output | None) -> bool:
    return other is not None and all(map(torch.equal, one.tensors, other.tensors))


@torch.no_grad()
def _watch(
    model: nn.Module, run: Callable[[], Tensor], size: int | None
) -> tuple[Tensor, dict[str, Output], tuple[str, ...]]:
    """The loss; what the largest modules that do not train gave before any that does was called, where they
    multiply by weights and were called once; and the paths of all that were called before."""
    found: dict[str, Output] = {}
    calls: dict[str, int] = {}
    called: list[str] = []
    inside, reached = False, False

    def forward(path: str, module: nn.Module, real: Forward, *inputs: Any, **named: Any) -> Any:
        nonlocal inside, reached
        calls[path] = calls.get(path, 0) + 1
        reached = reached or _trains_itself(module)
        if inside or reached or not _is_still(module):
            return real(*inputs, **named)
        inside = True
        try:
            value = real(*inputs, **named)
        finally:
            inside = False
        called.append(path)
        if _multiplies(module):
            found[path] = Output.of(value, _first(inputs, named))
        return value

    modules = dict(own_modules(model))
    with _instead(model, {path: partial(forward, path, module) for path, module in modules.items()}):
        loss = run()
    once = {path: each for path, each in found.items() if calls[path] == 1 and each.can_be_missing(size)}
    return loss, once, tuple(dict.fromkeys(called))


def _is_still(module: nn.Module) -> bool:
    return not any(each.requires_grad for each in module.parameters())


def _trains_itself(module: nn.Module) -> bool:
    own = any(each.requires_grad for each in module.parameters(recurse=False))
    return own or (isinstance(module, Host) and not _is_still(module))


def _multiplies(module: nn.Module) -> bool:
    """Whether it is more than looking up, normalising and the like, which may as well run each time."""
    return any(
        parameter.dim() > 1
        for part in module.modules()
        if not isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    )


def _first(inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
    return next(iter([*inputs, *named.values()]), None)


def _giving(value: Any) -> Callable[..., Any]:
    return lambda real, *inputs, **named: value


def _missing(output: Output, size: int | None) -> Callable[..., Any]:
    return lambda real, *inputs, **named: output.missing(size, _first(inputs, named))


@contextmanager
def _instead(model: nn.Module, forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within, these are called in place of the forwards of the modules at these paths, which they get first.
    Hooks of the modules run as ever."""
    own: list[tuple[nn.Module, Any]] = []
    try:
        for path, forward in forwards.items():
            module = model.get_submodule(path)
            own.append((module, module.__dict__.get("forward")))
            module.forward = partial(forward, module.forward)
        yield
    finally:
        for module, former in own:
            del module.forward
            if former is not None:
                module.forward = former
