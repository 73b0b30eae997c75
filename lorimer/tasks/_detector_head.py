"""The class head of a detector of transformers, resized for other classes.

Class heads are found by name and by how many rows they have: one for each class, or one more. That one is
"no object" where scores are a softmax (DETR, YOLOS), and the class of padding in RT-DETR's embedding of
noisy labels. It stays the last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.errors import FileFormatError

_HEAD = re.compile(
    r"(^|\.)(class_labels_classifier(\.layers\.\d+)?|class_embed(\.\d+)?|enc_score_head"
    r"|enc_out_class_embed(\.\d+)?|denoising_class_embed)$"
)


@dataclass(frozen=True)
class Classes:
    """The classes of a head after the base's.

    Attributes:
        names: in the order of the rows.
        sources: of each row the base's row that it begins as; None for a new one.
        learned: places of the classes to learn.
        new: places of those among them that the base does not know.
    """

    names: tuple[str, ...]
    sources: tuple[int | None, ...]
    learned: tuple[int, ...]
    new: tuple[int, ...]


def new_classes(base: Sequence[str], wanted: Sequence[str], keep: bool) -> Classes:
    """The classes of a head that learns `wanted`. A class that the base knows by the same name begins as the
    base has it.

    Args:
        keep: the base's classes stay, in their order, and new ones follow.
    """
    names = (*base, *(name for name in wanted if name not in base)) if keep else tuple(wanted)
    sources = tuple(
        place if keep and place < len(base) else base.index(name) if name in base else None
        for place, name in enumerate(names)
    )
    learned = tuple(names.index(name) for name in wanted)
    return Classes(names, sources, learned, tuple(place for place in learned if sources[place] is None))


def resize_head(network: nn.Module, classes: Classes) -> tuple[str, ...]:
    """Give every class head of a network the rows of `classes`; returns their paths.

    A new row begins as the mean of the base's, as what is common to things. Heads that share one weight
    become one module, so that they go on sharing it.

    Raises:
        FileFormatError: the network has no class head that is known.
    """
    config: Any = network.config
    heads = _heads(network, config.num_labels)
    if not heads:
        raise FileFormatError(f"{type(network).__name__}: has no class head that lorimer knows how to resize")
    _share(network, heads)
    for head in heads.values():
        for name, tensor in list(head.named_parameters(recurse=False)):
            setattr(head, name, nn.Parameter(_rows(tensor.detach(), classes, config.num_labels)))
        _tell_size(head)
    config.id2label = dict(enumerate(classes.names))
    config.label2id = {name: place for place, name in enumerate(classes.names)}
    return tuple(heads)


def _heads(network: nn.Module, count: int) -> dict[str, nn.Linear | nn.Embedding]:
    """Path -> head; of those that share a weight the first."""
    found: dict[str, nn.Linear | nn.Embedding] = {}
    weights: set[int] = set()
    for path, module in network.named_modules():
        if not _HEAD.search(path) or not isinstance(module, nn.Linear | nn.Embedding):
            continue
        if len(module.weight) in (count, count + 1) and id(module.weight) not in weights:
            if ".layers." in path:  # of a perceptron the last layer alone, whatever its width
                found.pop(f"{path.rpartition('.')[0]}.{int(path.rpartition('.')[2]) - 1}", None)
            weights.add(id(module.weight))
            found[path] = module
    return found


def _share(network: nn.Module, heads: dict[str, nn.Linear | nn.Embedding]) -> None:
    """Put one module wherever a weight is that several have."""
    first = {id(head.weight): head for head in heads.values()}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            head = first.get(id(getattr(child, "weight", None)))
            if head is not None and head is not child:
                setattr(parent, name, head)


def _rows(tensor: Tensor, classes: Classes, count: int) -> Tensor:
    """(classes, ...) rows of the base's, or their mean; the row behind the classes stays behind them."""
    mean = tensor[:count].mean(0)
    rows = [mean if source is None else tensor[source] for source in classes.sources]
    return torch.stack([*rows, *tensor[count:]])


def _tell_size(head: nn.Linear | nn.Embedding) -> None:
    if isinstance(head, nn.Linear):
        head.out_features = len(head.weight)
    else:
        head.num_embeddings = len(head.weight)
        head.padding_idx = len(head.weight) - 1 if head.padding_idx is not None else None
