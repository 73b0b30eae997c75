"""Components of picture models, and the one place where file names differ from module paths.

transformers 5 took the level `text_model.` out of `CLIPTextModel`, though not out of the one with a
projection; files keep it:

    module path   text_encoder.encoder.layers.0.self_attn.q_proj
    in files      text_encoder.text_model.encoder.layers.0.self_attn.q_proj
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from lorimer.adapters._state import AdapterState, LayerState
from lorimer.errors import FileFormatError
from lorimer.families._names import FileNames
from lorimer.formats._checks import shown

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
TEXT_MODEL = "text_model."
_CLIP = ("encoder.layers.", "embeddings.", "final_layer_norm")  # where CLIP's paths begin, and T5's do not


def file_prefix(component: str, names: FileNames | None) -> str:
    """What files may put before a component's module paths, by the family's names where it is known."""
    if names is not None and component in names.components:
        return names.components[component].level
    return TEXT_MODEL if component == "text_encoder" else ""


def to_file_path(component: str, path: str, names: FileNames | None) -> str:
    """What files call the layer at `path` in `component`, without the component."""
    return file_prefix(component, names) + path if path.startswith(_CLIP) else path


def from_file_path(component: str, path: str, names: FileNames | None) -> str:
    """The module path, component first, of a layer called `path` in a component's file."""
    return f"{component}.{path.removeprefix(file_prefix(component, names))}" if component else path


def module_paths(names: Mapping[str, str], where: str) -> dict[str, str]:
    """`names` (name in the file -> module path), or an error where two names mean one layer.

    Raises:
        FileFormatError: e.g. a path stands in the file both with `text_model.` and without.
    """
    twice = [path for path, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise FileFormatError(f"{where}: holds these layers under two names: {shown(twice)}")
    return dict(names)


def split_components(
    state: AdapterState, format: str, names: FileNames | None
) -> dict[str, dict[str, LayerState]]:
    """Component -> path within it -> layer, for those that have any.

    Raises:
        FileFormatError: the adapter is one of a plain model, or a path could not be told from another when
            it is read.
    """
    require_components(state, format)
    parts: dict[str, dict[str, LayerState]] = {}
    for path, layer in state.layers.items():
        component, _, rest = path.partition(".")
        if from_file_path(component, rest, names) != path:
            raise FileFormatError(
                f"the {format} format cannot tell {path!r} from the same path without {TEXT_MODEL!r}; "
                "use format 'lorimer'"
            )
        parts.setdefault(component, {})[rest] = layer
    return parts


def require_components(state: AdapterState, format: str) -> None:
    """Raise `FileFormatError` unless every layer lies in a component."""
    if not state.components:
        raise FileFormatError(
            f"the {format} format is for picture models, whose layers begin with a component ('unet.'). For "
            "a part of one, save with component=\"unet\"; for other models use format 'peft' or 'lorimer'"
        )
    for path in state.layers:
        component, _, rest = path.partition(".")
        if component not in state.components or not rest:
            raise FileFormatError(f"{path!r} is in none of the components {', '.join(state.components)}")


def present_components(paths: Iterable[str], declared: tuple[str, ...]) -> tuple[str, ...]:
    """The components that layers lie in; where the file declares them, its own list and order."""
    present = dict.fromkeys(path.partition(".")[0] for path in paths)
    return declared if present.keys() <= set(declared) else tuple(present)
