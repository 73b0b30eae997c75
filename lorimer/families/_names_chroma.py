"""What files call the layers of Chroma, which are FLUX.1's without modulation."""

from lorimer.families._names import FileNames, renamed
from lorimer.families._names_transformers import (
    AROUND,
    FEED_FORWARD,
    flux_blocks,
    flux_single_block,
    transformer_names,
)
from lorimer.families._names_unet import t5_names

_GUIDANCE = "distilled_guidance_layer"

CHROMA = FileNames(
    {
        "transformer": transformer_names(
            *renamed("", "", AROUND),
            *renamed(_GUIDANCE, _GUIDANCE, {"in_proj": "in_proj", "out_proj": "out_proj"}),
            *renamed(
                f"{_GUIDANCE}.layers.{{}}",
                f"{_GUIDANCE}.layers.{{}}",
                {"in_layer": "linear_1", "out_layer": "linear_2"},
            ),
            *flux_blocks(FEED_FORWARD),
            flux_single_block(),
            *renamed("single_blocks.{}", "single_transformer_blocks.{}", {"linear2": "proj_out"}),
        ),
        "text_encoder": t5_names("lora_te1_", "lora_te3_"),
    },
    architecture="chroma",
    base_version="chroma",
)
