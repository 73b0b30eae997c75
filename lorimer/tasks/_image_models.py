"""From what a recipe names to an image classifier, ready for the labels at hand.

efficientnet-lite0            the weights in an installed package, see `_packaged_weights.py`
timm:NAME                     timm's, with its weights; also timm:local-dir:PATH, timm:hf-hub:NAME
package.module:function       your own: called with the number of labels, returns a module from
                              (N, 3, height, width) to (N, labels), with the same weights each time
a folder, a name              an image classifier of transformers, from disk or from the hub
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorimer.errors import FileFormatError, MissingDependencyError, RecipeError
from lorimer.formats.safe_io import read_packaged_tensors, read_safetensors, write_safetensors
from lorimer.models import efficientnet_lite
from lorimer.tasks._classifier import heads_of, labelled
from lorimer.tasks._image_preparation import BICUBIC, BILINEAR, Asked, Preparation, of_processor, plain
from lorimer.tasks._language_files import load_pretrained, model_place, told_as_ours
from lorimer.tasks._model_files import shown_name
from lorimer.tasks._named_function import named_function
from lorimer.tasks._packaged_weights import made_once, packaged

Dtype = torch.dtype | Literal["auto"]

EFFICIENTNET = "efficientnet-lite0"
_TIMM = "timm:"
# What a file of a base model may lack: the layers that give the logits.
_MAY_LACK = (
    r"(^|\.)(classifier|cls_classifier|distillation_classifier|classifier_distill|head|dist_head|fc|score)\b"
)


@dataclass(frozen=True)
class ImageModel:
    """An image classifier in evaluation mode on the CPU.

    Attributes:
        preparation: what its pictures go through first.
        heads: paths of what gives the logits, which is trained in full.
        new: names of weights that the base does not have.
    """

    model: nn.Module
    preparation: Preparation
    heads: tuple[str, ...]
    new: tuple[str, ...]


def load_image_model(
    name: str, labels: Sequence[str], asked: Asked, dtype: Dtype = torch.float32
) -> ImageModel:
    """The classifier that a recipe names so, with an output for each label.

    Raises:
        MissingDependencyError: it needs a package that is not installed.
        RecipeError, UsageError: the name stands for nothing, or for a module that does not fit the labels or
            the size of pictures.
        FileFormatError: it is no image classifier, or lacks weights.
    """
    if name == EFFICIENTNET:
        found = _efficientnet(labels, asked)
    elif name.startswith(_TIMM):
        found = _of_timm(name.removeprefix(_TIMM), labels, asked)
    elif ":" in name:
        found = _of_function(name, labels, asked)
    else:
        found = _of_transformers(name, labels, asked, dtype)
    if dtype != "auto":
        found.model.to(dtype)
    found.model.eval()
    _try_out(found, name, len(labels))
    return found


def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """(N, labels), float32, of (N, 3, height, width) prepared pictures."""
    logits: Tensor = _answer(model, pixels)
    return logits.float()


def shown_image_model(name: str) -> str:
    """What files call a model that a recipe names so: no path of somebody's machine."""
    local = f"{_TIMM}local-dir:"
    return local + Path(name.removeprefix(local)).name if name.startswith(local) else shown_name(name)


def _answer(model: nn.Module, pixels: Tensor) -> Any:
    """What should be logits."""
    answer: Any = model(pixels.to(next(model.parameters()).dtype))
    return getattr(answer, "logits", answer)


def _try_out(found: ImageModel, name: str, labels: int) -> None:
    """Raise `RecipeError` where a picture as it is prepared does not give a logit for each label."""
    height, width = found.preparation.geometry.height, found.preparation.geometry.width
    try:
        with torch.no_grad():
            logits = _answer(found.model, torch.zeros(1, 3, height, width))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        first = " ".join(str(error).strip().splitlines()[:1])
        raise RecipeError(
            f"model: {shown_image_model(name)} cannot take pictures of {width} x {height} px, as data.size "
            f"or its processor has them: {first}"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, labels):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise RecipeError(
            f"model: {shown_image_model(name)} gives {given} for one picture, not logits (1, {labels})"
        )


def _efficientnet(labels: Sequence[str], asked: Asked) -> ImageModel:
    def convert(folder: Path) -> None:
        state = read_packaged_tensors(packaged(EFFICIENTNET))
        write_safetensors(efficientnet_lite.renamed(state), folder / "model.safetensors")

    folder = made_once(packaged(EFFICIENTNET), f"{EFFICIENTNET} 1", convert)
    weights = read_safetensors(folder / "model.safetensors")[0]
    model = efficientnet_lite.EfficientNetLite(len(labels))
    new: tuple[str, ...] = ()
    if tuple(labels) != efficientnet_lite.imagenet_labels():
        new = ("classifier.weight", "classifier.bias")
    kept = dict(model.state_dict())
    model.load_state_dict({key: kept[key] if key in new else value for key, value in weights.items()})
    preparation = plain(asked, efficientnet_lite.SIDE, efficientnet_lite.MEAN, efficientnet_lite.STD)
    return ImageModel(model, preparation, ("classifier",), new)


def _of_transformers(name: str, labels: Sequence[str], asked: Asked, dtype: Dtype) -> ImageModel:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model, new = load_pretrained(
        AutoModelForImageClassification, name, dtype, may_lack=_MAY_LACK, **labelled(labels)
    )
    with told_as_ours(name, "image processor"):
        processor: Any = AutoImageProcessor.from_pretrained(model_place(name), backend="pil")
    heads = tuple(heads_of(model, new, _MAY_LACK))
    if _names_in(name) != tuple(labels):
        new = sorted({*new, *_renewed(model, heads)})
    return ImageModel(model, of_processor(processor, asked, name), heads, tuple(new))


def _names_in(name: str) -> tuple[str, ...]:
    """What the outputs of a classifier of transformers are called in its own files."""
    from transformers import AutoConfig

    with told_as_ours(name, "configuration"):
        names: Any = AutoConfig.from_pretrained(model_place(name)).id2label or {}
    return tuple(names[place] for place in sorted(names))


def _of_timm(name: str, labels: Sequence[str], asked: Asked) -> ImageModel:
    try:
        import timm  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingDependencyError(
            f"model: {_TIMM}{name} needs timm, and timm torchvision: pip install timm ({error})"
        ) from error
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=len(labels))
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[:1]
        raise FileFormatError(f"model: {_TIMM}{name}: timm cannot load it: {' '.join(first)}") from error
    config = model.pretrained_cfg
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    own = tuple(config.get("label_names") or ()) == tuple(labels)
    resample = BICUBIC if config.get("interpolation") == "bicubic" else BILINEAR
    preparation = plain(
        asked,
        config["input_size"][-1],
        config["mean"],
        config["std"],
        config.get("crop_pct") or 0.875,
        resample,
    )
    return ImageModel(model, preparation, heads, () if own else _renewed(model, heads))


def _of_function(name: str, labels: Sequence[str], asked: Asked) -> ImageModel:
    function = named_function("model", name)
    model = function(len(labels))
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model: {name} returned a {type(model).__name__}, not an nn.Module")
    head = _head_in(model, name, len(labels))
    first, second = (_beside(each.state_dict(), head) for each in (model, function(len(labels))))
    if first.keys() != second.keys() or not all(torch.equal(first[key], second[key]) for key in first):
        raise RecipeError(
            f"model: {name} gives other weights each time, so what is trained on them is lost; load them "
            "from a file, or seed them with torch.manual_seed"
        )
    return ImageModel(model, plain(asked, share=1.0), (head,), _weights_in(model, (head,)))


def _head_in(model: nn.Module, name: str, labels: int) -> str:
    """The path of the layer that gives the logits: of those with as many outputs, the one called so."""
    fitting = [
        path
        for path, module in model.named_modules()
        if labels in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ]
    if not fitting:
        raise RecipeError(f"model: {name} returned a module without a layer of {labels} outputs")
    called = [path for path in fitting if re.search(_MAY_LACK, path)] if len(fitting) > 1 else fitting
    if len(called) != 1:
        raise RecipeError(
            f"model: {name} returned a module with {len(fitting)} layers of {labels} outputs "
            f"({', '.join(fitting[:4])}); call the one that gives the logits head, classifier or fc"
        )
    return called[0]


def _beside(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The weights outside of the head, which is saved with the adapter."""
    return {key: value for key, value in state.items() if head and not key.startswith(f"{head}.")}


def _renewed(model: nn.Module, heads: Sequence[str]) -> tuple[str, ...]:
    """Make the weights of heads, which were learned for other labels, random; their names."""
    for path in heads:
        for module in model.get_submodule(path).modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
    return _weights_in(model, heads)


def _weights_in(model: nn.Module, paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        ".".join(filter(None, (path, name)))
        for path in paths
        for name, _ in model.get_submodule(path).named_parameters()
    )
