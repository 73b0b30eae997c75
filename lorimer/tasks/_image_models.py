"""From what a recipe names to an image classifier, ready for the labels at hand.

efficientnet-lite0            the weights in an installed package, see `_packaged_weights.py`
timm:NAME                     timm's, with its weights; also timm:local-dir:PATH, timm:hf-hub:NAME
package.module:function       your own: called with the number of labels, returns a module from
                              (N, 3, height, width) to (N, labels)
a folder, a name              an image classifier of transformers, from disk or from the hub
"""

from __future__ import annotations

from collections.abc import Sequence
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
_MAY_LACK = r"(^|\.)(classifier|cls_classifier|distillation_classifier|head|fc)\b"


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
        RecipeError, UsageError: the name stands for nothing, or for a module that does not fit.
        FileFormatError: it is no image classifier, or lacks weights.
    """
    if name == EFFICIENTNET:
        found = _efficientnet(labels, asked)
    elif name.startswith(_TIMM):
        found = _of_timm(name.removeprefix(_TIMM), labels, asked)
    elif ":" in name:
        found = _of_function(name, labels, asked)
    else:
        return _of_transformers(name, labels, asked, dtype)
    if dtype != "auto":
        found.model.to(dtype)
    found.model.eval()
    return found


def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """(N, labels), float32, of (N, 3, height, width) prepared pictures."""
    answer: Any = model(pixels.to(next(model.parameters()).dtype))
    logits: Tensor = getattr(answer, "logits", answer)
    return logits.float()


def shown_image_model(name: str) -> str:
    """What files call a model that a recipe names so: no path of somebody's machine."""
    local = f"{_TIMM}local-dir:"
    return local + Path(name.removeprefix(local)).name if name.startswith(local) else shown_name(name)


def _efficientnet(labels: Sequence[str], asked: Asked) -> ImageModel:
    def convert(folder: Path) -> None:
        state = read_packaged_tensors(packaged(EFFICIENTNET))
        write_safetensors(efficientnet_lite.renamed(state), folder / "model.safetensors")

    weights = read_safetensors(made_once(packaged(EFFICIENTNET), convert) / "model.safetensors")[0]
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
    return ImageModel(model, of_processor(processor, asked, name), tuple(heads_of(model, new)), tuple(new))


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
    own = config.get("num_classes") == len(labels)
    resample = BICUBIC if config.get("interpolation") == "bicubic" else BILINEAR
    preparation = plain(
        asked,
        config["input_size"][-1],
        config["mean"],
        config["std"],
        config.get("crop_pct") or 0.875,
        resample,
    )
    return ImageModel(model, preparation, heads, () if own else _weights_in(model, heads))


def _of_function(name: str, labels: Sequence[str], asked: Asked) -> ImageModel:
    model = named_function("model", name)(len(labels))
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model: {name} returned a {type(model).__name__}, not an nn.Module")
    heads = [
        path
        for path, module in model.named_modules()
        if len(labels) in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ][-1:]
    if not heads:
        raise RecipeError(f"model: {name} returned a module without a layer of {len(labels)} outputs")
    return ImageModel(model, plain(asked, share=1.0), tuple(heads), _weights_in(model, heads))


def _weights_in(model: nn.Module, paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"{path}.{name}" for path in paths for name, _ in model.get_submodule(path).named_parameters()
    )
