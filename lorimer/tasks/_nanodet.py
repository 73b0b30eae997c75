"""The native NanoDet as a detector: how it sees a picture, learns classes, and finds things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

import lorimer
from lorimer.errors import FileFormatError, UsageError
from lorimer.models.nanodet import STRIDES, NanoDet, NanoDetConfig, points_of
from lorimer.tasks._box_maths import clip, nms
from lorimer.tasks._detector import Detector, Found, Prepared, Truth
from lorimer.tasks._detector_head import new_classes
from lorimer.tasks._nanodet_files import read_nanodet
from lorimer.tasks._nanodet_loss import detection_loss, drift, expected_boxes

if TYPE_CHECKING:
    from PIL.Image import Image

_OVERLAP = 0.6  # above which the less sure of two boxes of a class goes, as in NanoDet's tests
_MOST_CANDIDATES = 1000  # of a picture, before that
_LARGEST = 4096  # pixels of a side


class NanoDetDetector(Detector):
    """A NanoDet whose head has the classes to learn.

    Attributes:
        config: of the network as it is, its new classes included.
        learned: places of the classes that the data tell of. Of others a picture's boxes say nothing, not
            even that there are none: what is learned of them is what the base says.
    """

    network: NanoDet

    def __init__(
        self,
        network: NanoDet,
        config: NanoDetConfig,
        learned: Sequence[int],
        new: dict[str, Sequence[int] | None],
    ) -> None:
        self.network, self.config, self.learned, self.new = network, config, tuple(learned), new
        self.names = config.class_names
        self.side = config.input_size

    def fit_to(self, sizes: Sequence[tuple[int, int]], longest: int | None = None) -> None:
        """See `Detector.fit_to`; every multiple of 32 will do, and by default what the network learned on."""
        if longest is not None and not _is_side(longest):
            raise UsageError(f"NanoDet sees pictures in multiples of {STRIDES[-1]} pixels, not in {longest}")
        self.side = longest or self.side

    def prepare(self, picture: Image) -> Prepared:
        """The picture with its ratio kept in the middle of a black square, as it learned to see."""
        from PIL import Image as Images

        factor = self.side / max(picture.size)
        width, height = (max(1, round(length * factor)) for length in picture.size)
        left, top = (self.side - width) // 2, (self.side - height) // 2
        square = Images.new("RGB", (self.side, self.side))
        square.paste(picture.resize((width, height), Images.Resampling.BILINEAR), (left, top))
        blue_first = torch.from_numpy(np.asarray(square, dtype=np.float32)[..., ::-1].copy())
        mean, std = blue_first.new_tensor(self.config.mean), blue_first.new_tensor(self.config.std)
        pixels = ((blue_first - mean) / std).permute(2, 0, 1).contiguous()
        scale = (width / picture.width, height / picture.height)
        return Prepared(pixels, scale, (width, height), (left, top))

    def loss(
        self, model: nn.Module, pixels: Tensor, truths: Sequence[Truth], windows: Tensor | None = None
    ) -> Tensor:
        """`detection_loss` of the classes that are learned, and the `drift` of others from the base, which
        takes a second forward. It sees padding like a picture."""
        logits, distances = (each.float() for each in model(pixels))
        loss = self._of_learned(logits, distances, pixels, truths)
        kept = [place for place in range(len(self.names)) if place not in self.learned]
        if not kept:
            return loss
        with torch.no_grad(), lorimer.disabled(model):
            said, drawn = (each.float() for each in model(pixels))
        return loss + drift((logits[..., kept], distances), (said[..., kept], drawn))

    def _of_learned(
        self, logits: Tensor, distances: Tensor, pixels: Tensor, truths: Sequence[Truth]
    ) -> Tensor:
        columns = {place: column for column, place in enumerate(self.learned)}
        told = [
            Truth(truth.boxes, truth.labels.new_tensor([columns[label] for label in truth.labels.tolist()]))
            for truth in truths
        ]
        return detection_loss(logits[..., list(self.learned)], distances, *_points(pixels), told)

    @torch.no_grad()
    def find(
        self,
        model: nn.Module,
        pixels: Tensor,
        least: float = 0.05,
        most: int = 100,
        windows: Tensor | None = None,
    ) -> list[Found]:
        """What is in each picture, after suppression among boxes of one class; on the CPU."""
        logits, distances = model(pixels)
        height, width = pixels.shape[-2:]
        boxes = clip(expected_boxes(distances.float(), *_points(pixels)), width, height)
        scores = logits.float().sigmoid()
        return [_best(*each, least, most) for each in zip(boxes.cpu(), scores.cpu(), strict=True)]

    def preparation(self) -> str:
        return f"NanoDet {self.side} {self.config.mean} {self.config.std}"

    def metadata(self) -> dict[str, str]:
        return {"picture_size": str(self.side)}

    def restored(self, facts: Mapping[str, str]) -> Detector:
        told = facts.get("picture_size", "")
        if not (told.isdecimal() and _is_side(int(told))):
            raise FileFormatError(f"picture_size must be a multiple of {STRIDES[-1]} pixels, not {told!r}")
        self.side = int(told)
        return self

    def describe(self) -> list[str]:
        return [f"pictures are fitted, with their ratio kept, into {self.side} x {self.side} pixels"]


def load_nanodet(
    place: Path, names: Sequence[str], keep_old: bool, dtype: torch.dtype = torch.float32
) -> NanoDetDetector:
    """The NanoDet in a folder, with a head for classes to learn.

    Args:
        names: the classes of the data; none keeps the model's own as they are.
        keep_old: the model's own classes stay, in their order and exactly as they are, and those that it
            does not know follow. Otherwise the head has `names` alone, and is trained as a whole.

    Raises:
        FileFormatError: as `read_nanodet`.
    """
    network, config = read_nanodet(place, dtype)
    if not names:
        return NanoDetDetector(network, config, range(len(config.class_names)), {})
    classes = new_classes(config.class_names, names, keep_old)
    _resize(network, classes.sources)
    unknown = [row for row, source in enumerate(classes.sources) if source is None]
    heads = [f"head.scores.{level}" for level in range(len(STRIDES))] if unknown or not keep_old else []
    new: dict[str, Sequence[int] | None] = dict.fromkeys(heads, unknown if keep_old else None)
    return NanoDetDetector(network, replace(config, class_names=classes.names), classes.learned, new)


def _resize(network: NanoDet, sources: Sequence[int | None]) -> None:
    """Give the head a row for each source: that row of the old head, or for None the mean of all old rows,
    which is what is common to things."""
    for layer in network.head.scores:
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        for name, old in (("weight", layer.weight.detach()), ("bias", layer.bias.detach())):
            mean = old.mean(0)
            rows = torch.stack([mean if source is None else old[source] for source in sources])
            setattr(layer, name, nn.Parameter(rows))
        layer.out_channels = len(sources)


def _is_side(pixels: int) -> bool:
    return 0 < pixels <= _LARGEST and pixels % STRIDES[-1] == 0


def _points(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """`points_of` a batch, where it is."""
    points, strides = points_of(*pixels.shape[-2:])
    return points.to(pixels.device), strides.to(pixels.device)


def _best(boxes: Tensor, scores: Tensor, least: float, most: int) -> Found:
    """Boxes (P, 4) and scores (P, classes) -> the surest that remain after suppression."""
    point, label = (scores >= least).nonzero(as_tuple=True)
    sure = scores[point, label]
    first = sure.topk(min(_MOST_CANDIDATES, len(sure))).indices
    point, label, sure = point[first], label[first], sure[first]
    kept = nms(boxes[point], sure, label, _OVERLAP)[:most]
    return Found(boxes[point[kept]], sure[kept], label[kept])
