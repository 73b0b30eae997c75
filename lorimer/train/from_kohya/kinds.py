"""What a script of kohya's trains: which family of models, and which of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorimer.train.from_kohya.draft import Draft


@dataclass(frozen=True)
class Kind:
    """What a script of kohya's trains.

    Attributes:
        encoders: text encoders that learn unless the options say otherwise.
        t5: the encoder that learns with train_t5xxl.
        outside: layers of a transformer that lie in no block, which kohya leaves alone.
        files: kohya's option for a part's file -> the part.
    """

    encoders: tuple[str, ...]
    t5: str = ""
    outside: tuple[str, ...] = ()
    files: Mapping[str, str] | None = None

    @property
    def denoiser(self) -> str:
        """The component that denoises."""
        return "transformer" if self.outside else "unet"


KINDS = {
    "sd1": Kind(("text_encoder",)),
    "sd2": Kind(("text_encoder",)),
    "sdxl": Kind(("text_encoder", "text_encoder_2")),
    "sd3": Kind(
        ("text_encoder", "text_encoder_2"),
        "text_encoder_3",
        ("time_text_embed", "context_embedder", "norm_out", "transformer.proj_out"),
        {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"},
    ),
    "flux": Kind(
        ("text_encoder",),
        "text_encoder_2",
        ("x_embedder", "context_embedder", "time_text_embed", "norm_out", "transformer.proj_out"),
        {"clip_l": "text_encoder", "t5xxl": "text_encoder_2", "ae": "vae"},
    ),
    "chroma": Kind(
        (),
        "text_encoder",
        ("x_embedder", "context_embedder", "distilled_guidance_layer", "transformer.proj_out"),
        {"t5xxl": "text_encoder", "ae": "vae"},
    ),
    "lumina2": Kind(
        ("text_encoder",), "", ("x_embedder", "time_caption_embed"), {"gemma2": "text_encoder", "ae": "vae"}
    ),
}


def kind_of(draft: Draft, family: str | None) -> tuple[str, str]:
    """(family, how it shows) of what the options train; the model itself is not looked at."""
    given, module = draft.given, str(draft.given.get("network_module", ""))
    model = Path(str(given.get("pretrained_model_name_or_path", ""))).name.lower()
    if family:
        return family, "as asked"
    clues = {
        "chroma": "model_type" if given.get("model_type") == "chroma" else "",
        "flux": "network_module" if "flux" in module else "ae" if "ae" in given and "t5xxl" in given else "",
        "sd3": "network_module" if "sd3" in module else "clip_g" if "clip_g" in given else "",
        "lumina2": "network_module" if "lumina" in module else "gemma2" if "gemma2" in given else "",
        "sd2": "v2" if "v2" in given else "",
        "sdxl": "its name" if "xl" in model or "pony" in model or "illustrious" in model else _sdxl(draft),
    }
    return next(
        ((name, clue) for name, clue in clues.items() if clue),
        ("sd1", "nothing points to another; --family says it"),
    )


def _sdxl(draft: Draft) -> str:
    rates = draft.given.get("text_encoder_lr")
    if draft.given.get("sdxl"):
        return "sdxl"
    if isinstance(rates, list) and len(rates) == 2:
        return "text_encoder_lr"
    sides = str(draft.given.get("resolution", "")).split(",")
    return "resolution" if sides[0].strip().isdigit() and int(sides[0]) >= 1024 else ""
