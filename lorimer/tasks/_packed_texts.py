"""A classifier's padded batch, read without its padding: texts share rows and do not see each other.

    (texts, length) with padding  ->  (rows, width), full  ->  layers  ->  (texts, length) again

Everything before and after the layers (embeddings, pooling, head) has the batch as it came, so the result is
the padded one up to rounding, for the cost of the tokens that are there. Where a model does not allow it, as
when its layers go by the distance of places in a row, trying it shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.kernels.attention import attention_for
from lorimer.tasks._sequences import pack

WIDTH = 64  # tokens of a row at least: attention's cost grows with it, and what stays empty shrinks
_PROBE = (9, 3, 5, 12)  # tokens of the texts by which a model's ways are found out


class _OtherInputsError(Exception):
    """The layers are given more than texts and a mask: nobody knows how to pack that."""


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

    def mask(self, like: Tensor | None) -> Tensor:
        """(rows, 1, width, width) Who sees whom, in the form of the mask that it stands for: bool, or what is
        added to scores."""
        seen = (self.text[:, :, None] == self.text[:, None, :])[:, None]
        if like is None or like.dtype == torch.bool:
            return seen
        return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)


@dataclass(frozen=True)
class Layers:
    """The module of a classifier that holds its layers.

    Attributes:
        module: an encoder, which gets hidden states and a mask; or a whole decoder, which gets tokens.
        decoder: which of both.
    """

    module: nn.Module
    decoder: bool

    @contextmanager
    def packed(self, mask: Tensor) -> Iterator[None]:
        """Within, the layers read the batch whose `mask` (texts, length) this is in rows without padding."""
        rows = Packed.of(mask)
        before = self._tokens_packed if self.decoder else self._states_packed
        handles = (
            self.module.register_forward_pre_hook(
                lambda _, args, kwargs: before(rows, args, kwargs), with_kwargs=True
            ),
            self.module.register_forward_hook(lambda _, args, output: _unpacked(rows, output)),
        )
        try:
            with attention_for(rows.source.shape[1], mask.device):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _states_packed(self, rows: Packed, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What an encoder gets, packed."""
        states, mask = args[0] if args else kwargs.get("hidden_states"), kwargs.get("attention_mask")
        others = [*args[1:], *(kwargs[name] for name in kwargs.keys() - {"hidden_states", "attention_mask"})]
        if states is None or any(isinstance(each, Tensor) for each in others):
            raise _OtherInputsError
        return (rows.pack(states), *args[1:]), {
            **{name: value for name, value in kwargs.items() if name != "hidden_states"},
            "attention_mask": rows.mask(mask),
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
    base = model.base_model
    inner = [
        module
        for module in base.modules()
        if any(isinstance(child, nn.ModuleList) for child in module.children())
    ]
    config = model.config
    if not inner or config.is_encoder_decoder or config._attn_implementation not in ("sdpa", "eager"):
        return None
    layers = Layers(inner[0], decoder=inner[0] is base)
    return layers if _tried(model, layers) else None


@torch.no_grad()
def _tried(model: Any, layers: Layers) -> bool:
    """Whether packed texts come out as padded ones; texts that see each other are off by half of the norm."""
    length, device = max(_PROBE), next(model.parameters()).device
    ids = torch.arange(1, 1 + len(_PROBE) * length, device=device).remainder(model.config.vocab_size)
    ids = ids.view(len(_PROBE), length)
    mask = (torch.arange(length, device=device) < torch.tensor(_PROBE, device=device)[:, None]).long()
    present, training = mask.bool(), model.training
    model.eval()
    try:
        wanted = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[present]
        with layers.packed(mask):
            ours = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[present]
    except _OtherInputsError:
        return False
    finally:
        model.train(training)
    rounding = max(1e-3, 16 * torch.finfo(wanted.dtype).eps)
    return bool((ours - wanted).float().norm() <= rounding * wanted.float().norm())


def _unpacked(rows: Packed, output: Any) -> Any:
    """The layers' output with its hidden states padded again."""
    if isinstance(output, tuple):
        return (rows.unpack(output[0]), *output[1:])
    output["last_hidden_state"] = rows.unpack(output["last_hidden_state"])
    return output
