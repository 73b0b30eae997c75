"""A classifier's padded batch, read without its padding: texts share rows and do not see each other.

    (texts, length) with padding  ->  (rows, width), full  ->  layers  ->  (texts, length) again

Everything before and after the layers (embeddings, pooling, head) has the batch as it came, so the result is
the padded one up to rounding, for the cost of the tokens that are there. Where a model does not allow it, as
when its layers are not told who sees whom by a mask, trying it shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.kernels.attention import attention_for
from lorimer.tasks._sequences import pack

# What models raise that are given what they were not made for; each was seen.
_FOREIGN = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
WIDTH = 64  # tokens of a row at least: attention's cost grows with it, and what stays empty shrinks
_PROBES = ((9, 3, 5, 12), (7, 7, 7, 7))  # tokens of the texts by which a model's ways are found out


@dataclass(frozen=True)
class Packed:
    """Where the tokens of a padded batch stand in rows.

    Attributes:
        source: (rows, width) the place in the flat padded batch of each token; 0 where a row is empty.
        target: (texts, length) the place in the flat rows of each token; 0 where it is padding.
        text: (rows, width) the text of each token; -1 where a row is empty.
        position: (rows, width) of each token in its own text; what is empty counts from 0 as well.
    """

    source: Tensor
    target: Tensor
    text: Tensor
    position: Tensor

    @staticmethod
    def of(mask: Tensor) -> Packed:
        """The rows for a batch whose `mask` (texts, length) is not 0 where tokens are."""
        present = mask.bool().cpu()
        lengths = present.sum(1).tolist()
        rows = pack(lengths, max(WIDTH, *lengths))
        width = max(sum(lengths[text] for text in row) for row in rows)
        places = torch.arange(present.numel()).view(present.shape)
        source = torch.zeros(len(rows), width, dtype=torch.long)
        target = torch.zeros(present.shape, dtype=torch.long)
        text_of = torch.full_like(source, -1)
        position = torch.zeros_like(source)
        for number, row in enumerate(rows):
            begin = 0
            for text in row:
                end = begin + lengths[text]
                source[number, begin:end] = places[text, present[text]]
                target[text, present[text]] = torch.arange(number * width + begin, number * width + end)
                text_of[number, begin:end] = text
                position[number, begin:end] = torch.arange(lengths[text])
                begin = end
            position[number, begin:] = torch.arange(width - begin)
        return Packed(*(each.to(mask.device) for each in (source, target, text_of, position)))

    def pack(self, padded: Tensor) -> Tensor:
        """(rows, width, ...) from (texts, length, ...)."""
        return padded.flatten(0, 1)[self.source]

    def unpack(self, rows: Tensor) -> Tensor:
        """(texts, length, ...) from (rows, width, ...). What was padding holds another token's values."""
        return rows.flatten(0, 1)[self.target]

    def mask(self) -> Tensor:
        """(rows, 1, width, width) Who sees whom."""
        return (self.text[:, :, None] == self.text[:, None, :])[:, None]

    def leaking(self) -> Packed:
        """The same rows as one text each, in which all see each other: what must not happen."""
        width = self.text.shape[1]
        position = torch.arange(width, device=self.text.device).expand_as(self.text)
        return replace(self, text=torch.zeros_like(self.text), position=position)


@dataclass(frozen=True)
class Layers:
    """The module of a classifier that holds its layers.

    Attributes:
        module: an encoder, which gets hidden states and a mask; or a whole decoder, which gets tokens.
        decoder: which of both.
        additive: whether an encoder adds its mask to scores, and is not told true and false.
    """

    module: nn.Module
    decoder: bool
    additive: bool

    @contextmanager
    def packed(self, mask: Tensor, recomputed: bool = False) -> Iterator[Packed]:
        """Within, the layers read the batch whose `mask` (texts, length) this is in rows without padding; it
        gives these.

        Args:
            recomputed: see `attention_for`.
        """
        rows = Packed.of(mask)
        with self._reading(rows), attention_for(rows.source.shape[1], mask.device, recomputed):
            yield rows

    @contextmanager
    def _reading(self, rows: Packed) -> Iterator[None]:
        before = self._tokens_packed if self.decoder else self._states_packed
        handles = (
            self.module.register_forward_pre_hook(
                lambda _, args, kwargs: before(rows, args, kwargs), with_kwargs=True
            ),
            self.module.register_forward_hook(lambda _, args, output: _unpacked(rows, output)),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _states_packed(self, rows: Packed, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What an encoder gets, packed."""
        states = args[0] if args else kwargs.get("hidden_states")
        others = [*args[1:], *(kwargs[name] for name in kwargs.keys() - {"hidden_states", "attention_mask"})]
        if states is None or any(isinstance(each, Tensor) for each in others):
            raise TypeError("these layers are given more than states and a mask, or other than states")
        seen = rows.mask()
        if self.additive:
            smallest = torch.finfo(states.dtype).min
            seen = torch.zeros_like(seen, dtype=states.dtype).masked_fill(~seen, smallest)
        return (rows.pack(states), *args[1:]), {
            **{name: value for name, value in kwargs.items() if name != "hidden_states"},
            "attention_mask": seen,
        }

    def _tokens_packed(self, rows: Packed, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What a decoder gets, packed: it tells texts apart by positions that begin anew."""
        packed = {
            name: rows.pack(value) if isinstance(value, Tensor) and value.dim() == 2 else value
            for name, value in kwargs.items()
        }
        ways = {"attention_mask": None, "position_ids": rows.position, "use_cache": False}
        return (*map(rows.pack, args[:1]), *args[1:]), {**packed, **ways}


def layers_of(model: Any) -> Layers | None:
    """The layers of a classifier of transformers; None where trying shows that they cannot be packed."""
    base, config = model.base_model, model.config
    inner = [
        module
        for module in base.modules()
        if any(isinstance(child, nn.ModuleList) for child in module.children())
    ]
    attention = config._attn_implementation
    if not inner or config.is_encoder_decoder or attention not in ("sdpa", "eager"):
        return None
    if getattr(config, "attention_type", None) == "block_sparse":  # BigBird: short texts change it for good
        return None
    layers = Layers(inner[0], decoder=inner[0] is base, additive=attention == "eager")
    training = model.training
    model.eval()
    try:
        fits = all(_keeps_texts_apart(model, layers, lengths) for lengths in _PROBES)
    except _FOREIGN:
        fits = False
    finally:
        model.train(training)
    return layers if fits else None


@torch.no_grad()
def _keeps_texts_apart(model: Any, layers: Layers, lengths: tuple[int, ...]) -> bool:
    """Whether packed texts come out as padded ones: far nearer than where they see each other, in states and
    in logits."""
    length, device = max(lengths), next(model.parameters()).device
    mask = (torch.arange(length, device=device) < torch.tensor(lengths, device=device)[:, None]).long()
    ids = torch.arange(5, 5 + mask.numel(), device=device).remainder(model.config.vocab_size).view_as(mask)
    ids = ids.masked_fill(mask == 0, model.config.pad_token_id or 0)  # heads look for the last other token
    rows = Packed.of(mask)

    def said() -> tuple[Tensor, Tensor]:
        states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        return states.float(), model(input_ids=ids, attention_mask=mask).logits.float()

    padded = said()
    with layers._reading(rows):
        packed = said()
    with layers._reading(rows.leaking()):
        leaking = said()
    (off, off_logits), (leak, leak_logits) = (_distances(each, padded) for each in (packed, leaking))
    rounding = 4 * torch.finfo(next(model.parameters()).dtype).eps * padded[1].norm().item()
    # Logits may come from tokens that a leak does not reach, so what there is may be rounding alone.
    return off <= 0.1 * leak and leak > 0 and off_logits <= 0.1 * leak_logits + rounding


def _distances(ours: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> list[float]:
    return [(mine - theirs).norm().item() for mine, theirs in zip(ours, wanted, strict=True)]


def _unpacked(rows: Packed, output: Any) -> Any:
    """The layers' output with its hidden states padded again."""
    if isinstance(output, tuple):
        return (rows.unpack(output[0]), *output[1:])
    output["last_hidden_state"] = rows.unpack(output["last_hidden_state"])
    return output
