"""Detectors of transformers: YOLOS, DETR and its kin (conditional, deformable), RT-DETR in both versions.

Each brings its own loss, which matches queries and boxes one to one (arXiv 2005.12872). Pictures are fitted
into one canvas: stretched where the model's processor says a height and a width, else with their ratio kept
and zeros on the right and below.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lorimer.errors import FileFormatError, MissingDependencyError, UsageError
from lorimer.tasks._box_maths import clip
from lorimer.tasks._detector import Detector, Found, Prepared, Truth
from lorimer.tasks._detector_head import new_classes, resize_head
from lorimer.tasks._language_files import load_pretrained, model_place, told_as_ours

if TYPE_CHECKING:
    from PIL.Image import Image

_MULTIPLE = 32  # pixels: what backbones halve five times
_LARGEST = 8192  # pixels of a side that a file may ask for
Size = tuple[int, int]  # height, width


class TransformersDetector(Detector):
    """An object detector of transformers with a head for other classes.

    Attributes:
        canvas: height and width of every prepared picture; None until `fit_to` or a file tells them.
        stretches: whether pictures fill the canvas whatever their ratio.
    """

    def __init__(
        self, network: nn.Module, processor: Any, names: Sequence[str], keep: bool, lacking: Sequence[str]
    ) -> None:
        config: Any = network.config
        self.network, self.processor = network, processor
        old = tuple(str(config.id2label[place]) for place in range(config.num_labels))
        classes = new_classes(old, names, keep)
        heads = resize_head(network, classes)
        self.names = classes.names
        self.new = dict.fromkeys(sorted({key.rpartition(".")[0] for key in lacking}))
        if not keep:
            self.new |= dict.fromkeys(heads)
        elif classes.new:
            self.new |= {head: classes.new for head in heads if head not in self.new}
        layers = [network.get_submodule(head) for head in heads]
        self.softmax = any(
            isinstance(each, nn.Linear) and each.out_features > len(self.names) for each in layers
        )
        if keep:
            places = [*classes.learned, len(self.names)] if self.softmax else classes.learned
            network.loss_function = _of_learned(network.loss_function, places, classes.learned)
        size = processor.size
        self.stretches = size.height is not None
        self.canvas: Size | None = (size.height, size.width) if self.stretches else None
        self.masks = not self.stretches and "pixel_mask" in signature(network.forward).parameters
        for name in ("anchor_image_size", "eval_size"):  # what RT-DETR computes ahead for one size
            if hasattr(config, name):
                setattr(config, name, None)
        for module in network.modules():
            if hasattr(module, "eval_size"):
                module.eval_size = None  # type: ignore[assignment]

    def fit_to(self, sizes: Sequence[tuple[int, int]], longest: int | None = None) -> None:
        if self.stretches:
            if longest is not None:
                self.canvas = (_in_strides(longest, self.network.config), longest)
            return
        scaled = [_scaled(size, self.processor.size, longest) for size in set(sizes)]
        height, width = (max(size[side] for size in scaled) for side in (0, 1))
        self.canvas = (_whole(height), _whole(width))

    def prepare(self, picture: Image) -> Prepared:
        assert self.canvas is not None, "fit_to tells the size of pictures first"
        height, width = self.canvas
        if not self.stretches:
            factor = min(height / picture.height, width / picture.width)
            height, width = max(1, round(picture.height * factor)), max(1, round(picture.width * factor))
        size = {"height": height, "width": width}
        told = self.processor(images=picture, size=size, do_resize=True, do_pad=False, return_tensors="pt")
        pixels = pad(told["pixel_values"][0], (0, self.canvas[1] - width, 0, self.canvas[0] - height))
        return Prepared(pixels, (width / picture.width, height / picture.height), (width, height))

    def loss(
        self, model: nn.Module, pixels: Tensor, truths: Sequence[Truth], windows: Tensor | None = None
    ) -> Tensor:
        windows = _windows(pixels, windows)
        mask = self._mask(pixels, windows)
        extents = _extents(pixels, windows, mask)
        labels = [
            {"class_labels": truth.labels, "boxes": _centred(truth.boxes) / extent}
            for truth, extent in zip(truths, extents, strict=True)
        ]
        self._set_denoising(model)
        return model(pixel_values=pixels, labels=labels, **_given(mask)).loss

    def _set_denoising(self, model: Any) -> None:
        """RT-DETR learns from noisy boxes in training, which its inner model tells by its own flag."""
        if getattr(model.config, "num_denoising", 0):
            model.model.training = model.training

    @torch.no_grad()
    def find(
        self,
        model: nn.Module,
        pixels: Tensor,
        least: float = 0.05,
        most: int = 100,
        windows: Tensor | None = None,
    ) -> list[Found]:
        windows = _windows(pixels, windows)
        mask = self._mask(pixels, windows)
        told = model(pixel_values=pixels, **_given(mask))
        logits, boxes = told.logits.float(), _cornered(told.pred_boxes.float())
        boxes = boxes * _extents(pixels, windows, mask)[:, None]
        height, width = pixels.shape[-2:]
        return [
            _surest(each, clip(box, width, height), self.softmax, least, most)
            for each, box in zip(logits, boxes, strict=True)
        ]

    def _mask(self, pixels: Tensor, windows: Tensor) -> Tensor | None:
        """(B, height, width) long, 1 where a picture is and 0 where it was padded; None for models without
        such a mask."""
        if not self.masks:
            return None
        rows, columns = (torch.arange(side, device=pixels.device) for side in pixels.shape[-2:])
        above = rows < windows[:, 3:]
        left = columns < windows[:, 2:3]
        return (above[:, :, None] & left[:, None, :]).long()

    def preparation(self) -> str:
        facts = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        return hashlib.sha256(f"{facts} {self.canvas}".encode()).hexdigest()

    def metadata(self) -> dict[str, str]:
        return {} if self.canvas is None else {"picture_size": "{}x{}".format(*self.canvas)}

    def restored(self, facts: Mapping[str, str]) -> Detector:
        sides = facts.get("picture_size", "").split("x")
        if not (len(sides) == 2 and all(side.isdecimal() and 0 < int(side) <= _LARGEST for side in sides)):
            raise FileFormatError(f"picture_size must be height x width, not {facts.get('picture_size')!r}")
        self.canvas = (int(sides[0]), int(sides[1]))
        return self

    def describe(self) -> list[str]:
        assert self.canvas is not None
        how = "stretched to" if self.stretches else "fitted, with their ratio kept, into"
        return ["pictures are {} {} x {} pixels".format(how, *self.canvas[::-1])]


def load_transformers_detector(
    name: str, names: Sequence[str], keep: bool, dtype: torch.dtype | Literal["auto"] = torch.float32
) -> TransformersDetector:
    """The detector in a folder or on the hub, with a head for `names`.

    Raises:
        MissingDependencyError: scipy is not installed, by which losses match boxes.
        FileFormatError: transformers has no such detector, or its class head is of no known kind.
    """
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    if find_spec("scipy") is None:
        raise MissingDependencyError('detectors of transformers need scipy: pip install "lorimer[vision]"')
    network, lacking = load_pretrained(AutoModelForObjectDetection, name, dtype, may_lack=_MAY_LACK)
    with told_as_ours(name, "image processor"):
        processor: Any = AutoImageProcessor.from_pretrained(model_place(name), backend="pil")
    if not hasattr(getattr(processor, "size", None), "height"):
        raise FileFormatError(f"{name}: its image processor says no size of pictures")
    return TransformersDetector(network, processor, names, keep, lacking)


_MAY_LACK = r"(class_labels_classifier|bbox_predictor|class_embed|bbox_embed|enc_score_head|enc_bbox_head)"


def _of_learned(loss: Any, columns: Sequence[int], learned: Sequence[int]) -> Any:
    """A loss of transformers over the classes that the data tell of, and "no object". Of others a picture's
    boxes say nothing, not even that there are none, so that they take no part.

    Args:
        columns: of the logits.
        learned: places of the classes.
    """

    def of_learned(
        logits: Tensor,
        labels: Sequence[Mapping[str, Tensor]],
        device: Any,
        boxes: Tensor,
        config: Any,
        *all_classes: Tensor | None,
        **options: Any,
    ) -> Any:
        narrow = copy.copy(config)
        narrow.id2label = dict(enumerate(map(str, learned)))
        places = logits.new_full((max(learned) + 1,), -1, dtype=torch.long)
        places[list(learned)] = torch.arange(len(learned), device=places.device)
        told = [{**each, "class_labels": places[each["class_labels"]]} for each in labels]
        if options.get("enc_topk_logits") is not None:
            options["enc_topk_logits"] = options["enc_topk_logits"][..., columns]
        classes, *rest = all_classes or (None,)
        chosen = None if classes is None else classes[..., columns]
        return loss(logits[..., columns], told, device, boxes, narrow, chosen, *rest, **options)

    return of_learned


def _scaled(size: tuple[int, int], rule: Any, longest: int | None) -> Size:
    """Height and width of a picture (width, height) as a processor scales it, or with its longer side so."""
    width, height = size
    short, long = min(size), max(size)
    if longest is not None or rule.shortest_edge is None:
        factor = (longest or rule.longest_edge or long) / long
    else:
        factor = min(rule.shortest_edge / short, (rule.longest_edge or float("inf")) / long)
    return round(height * factor), round(width * factor)


def _in_strides(side: int, config: Any) -> int:
    """The side of a canvas whose features a network joins across scales, as RT-DETR does, must fit all."""
    stride = max(getattr(config, "feat_strides", None) or (1,))
    if side % stride:
        raise UsageError(f"this detector sees pictures in multiples of {stride} pixels, not in {side}")
    return side


def _whole(side: int) -> int:
    return -(-side // _MULTIPLE) * _MULTIPLE


def _given(mask: Tensor | None) -> dict[str, Tensor]:
    return {} if mask is None else {"pixel_mask": mask}


def _windows(pixels: Tensor, windows: Tensor | None) -> Tensor:
    """(B, 4) where pictures lie: always from the canvas's first corner."""
    if windows is not None:
        return windows
    height, width = pixels.shape[-2:]
    return pixels.new_tensor([0, 0, width, height], dtype=torch.float32).expand(len(pixels), 4)


def _extents(pixels: Tensor, windows: Tensor, mask: Tensor | None) -> Tensor:
    """(B, 4) width, height, width, height of each picture, by which its boxes are shares: of itself where a
    mask shows it, as positions are counted there, else of the whole canvas."""
    sides = (_windows(pixels, None) if mask is None else windows)[:, 2:]
    return torch.cat([sides, sides], 1)


def _centred(boxes: Tensor) -> Tensor:
    """Corners -> centre and size."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def _cornered(boxes: Tensor) -> Tensor:
    """Centre and size -> corners."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def _surest(logits: Tensor, boxes: Tensor, softmax: bool, least: float, most: int) -> Found:
    """Of (queries, classes) logits and (queries, 4) boxes the surest: one class a query where scores are a
    softmax over classes and "no object", the last; any pair of query and class where each is by itself."""
    if softmax:
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        queries = torch.arange(len(logits), device=logits.device)
    else:
        scores = logits.sigmoid().flatten()
        places = torch.arange(len(scores), device=logits.device)
        queries, labels = places // logits.shape[1], places % logits.shape[1]
    order = scores.argsort(descending=True, stable=True)[:most]
    order = order[scores[order] >= least]
    return Found(boxes[queries[order]], scores[order], labels[order])
