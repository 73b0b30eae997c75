"""Detectors of transformers so small that a step takes a blink, and pictures of coloured shapes to find."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SIDE = 64
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230)}


def save_tiny_detector(folder: Path, kind: str = "yolos", names: Sequence[str] = ("red", "green")) -> Path:
    """A random detector of a kind, with its image processor, in a folder."""
    from transformers import AutoModelForObjectDetection

    torch.manual_seed(0)
    config, processor = KINDS[kind]()
    config.id2label = dict(enumerate(names))
    config.label2id = {name: place for place, name in enumerate(names)}
    AutoModelForObjectDetection.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def shapes(folder: Path, count: int, colours: Sequence[str] = ("red", "green"), seed: int = 0) -> Path:
    """Pictures of one to three filled rectangles on noise, and a COCO file that says where they are."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def draw_between(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    images, annotations = [], []
    for number in range(1, count + 1):
        noise = torch.randint(90, 160, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(noise.numpy())
        pen = ImageDraw.Draw(picture)
        for corner in range(draw_between(1, 4)):
            place = draw_between(0, len(colours))
            width, height = draw_between(14, 26), draw_between(14, 26)
            x = 32 * (corner % 2) + draw_between(0, 32 - width)
            y = 32 * (corner // 2) + draw_between(0, 32 - height)
            pen.rectangle((x, y, x + width - 1, y + height - 1), COLOURS[colours[place]])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": place,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        picture.save(folder / f"{number:03d}.png")
        images.append({"id": number, "file_name": f"{number:03d}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": place, "name": name} for place, name in enumerate(colours)]
    told = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(told))
    return folder


def _keeping_ratio(processor: Any) -> Any:
    return processor(size={"shortest_edge": SIDE, "longest_edge": SIDE})


def _yolos() -> tuple[Any, Any]:
    from transformers import YolosConfig, YolosImageProcessorPil

    config = YolosConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=[SIDE, SIDE],
        patch_size=8,
        num_detection_tokens=12,
    )
    return config, _keeping_ratio(YolosImageProcessorPil)


def _resnet(**options: Any) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        **options,
    )


def _detr_like(
    config: str, features: Sequence[str] = ("stage4",), **options: Any
) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        import transformers

        told = getattr(transformers, f"{config}Config")(
            backbone_config=_resnet(out_features=list(features)),
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            d_model=32,
            num_queries=8,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            **options,
        )
        return told, _keeping_ratio(getattr(transformers, f"{config}ImageProcessorPil"))

    return make


def _rt_detr(config: str) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        import transformers

        backbone = transformers.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        told = getattr(transformers, f"{config}Config")(
            backbone_config=backbone,
            encoder_hidden_dim=32,
            encoder_in_channels=[16, 24, 32],
            encoder_layers=1,
            encoder_ffn_dim=64,
            encoder_attention_heads=2,
            d_model=32,
            num_queries=12,
            decoder_in_channels=[32, 32, 32],
            decoder_ffn_dim=64,
            decoder_layers=2,
            decoder_attention_heads=2,
            num_denoising=12,
            hidden_expansion=0.5,
            anchor_image_size=None,
        )
        return told, transformers.RTDetrImageProcessorPil(size={"height": SIDE, "width": SIDE})

    return make


KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "yolos": _yolos,
    "detr": _detr_like("Detr"),
    "conditional-detr": _detr_like("ConditionalDetr"),
    "deformable-detr": _detr_like("DeformableDetr", ("stage2", "stage3", "stage4"), num_feature_levels=3),
    "rt-detr": _rt_detr("RTDetr"),
    "rt-detr-v2": _rt_detr("RTDetrV2"),
}
