"""From what a recipe names as its model to where each of its parts comes from.

model: embedded
model: a/folder                       in the layout of diffusers' pipelines
model: owner/name                     the same on the hub
model: sdxl.safetensors               one checkpoint file; its configs are lorimer's
model:                                any of these, and parts from elsewhere
  path: flux1-dev.safetensors
  vae: ae.safetensors
  text_encoder: clip_l.safetensors
  text_encoder_2: t5/                 a folder or a file of that part
  tokenizer_2: t5/tokenizer/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lorimer import registry
from lorimer.errors import FileFormatError, UsageError, suggest
from lorimer.families._base import Family
from lorimer.families._layouts import DENOISER, PLAIN
from lorimer.families._single_file import Config, SingleFile
from lorimer.formats.safe_io import Header, read_json, read_safetensors_header
from lorimer.tasks._diffusers_folder import (
    family_of_folder,
    folder_from_hub,
    pipeline_settings,
    require_parts,
)
from lorimer.tasks._model_parts import (
    CheckpointPart,
    FolderPart,
    MadeTokenizer,
    ModelPart,
    NetworkPart,
    SetScheduler,
    checkpoint_part,
)

EMBEDDED = Path(__file__).parents[1] / "models" / "embedded"
_PREDICTIONS = ("epsilon", "v_prediction")
ModelName = str | Mapping[str, str]


@dataclass(frozen=True)
class ModelFiles:
    """A picture model that is not loaded yet.

    Attributes:
        source: what it is called, as the recipe says it.
        place: its folder, or its checkpoint file.
        parts: component -> where it comes from; None for an optional one that the model lacks.
        settings: of the pipeline, see `Family.pipeline_settings`.
    """

    family: type[Family]
    source: str
    place: Path
    parts: Mapping[str, ModelPart | None]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def networks(self) -> dict[str, NetworkPart]:
        """The parts that have weights."""
        return {
            name: part
            for name, part in self.parts.items()
            if isinstance(part, FolderPart | CheckpointPart) and self.family.parts[name].kind == "network"
        }


def model_files(model: ModelName) -> ModelFiles:
    """The files of the model that a recipe names so; on a command line the mapping is text, as in YAML.

    Raises:
        UsageError: there is no such model, or the names of the mapping are no parts of it.
        FileFormatError: it is no model of a known family, or lacks parts (all are named), or one is broken.
    """
    given = _parsed(model) if isinstance(model, str) else dict(model)
    if not given.get("path"):
        raise UsageError("model: a mapping needs path:, the checkpoint or folder that has most of the model")
    source = str(given.pop("path"))
    place = EMBEDDED if source == "embedded" else Path(source).expanduser()
    if place.is_file():
        return _of_checkpoint(place, source, given)
    return _of_folder(place if place.is_dir() else folder_from_hub(source), source, given)


def _parsed(name: str) -> dict[str, str]:
    """A model's name as a mapping."""
    if not name.startswith("{"):
        return {"path": name}
    import yaml

    try:
        value = yaml.safe_load(name)
    except yaml.YAMLError as error:
        raise UsageError(f"model: {name!r} is no mapping like {{path: x.safetensors, vae: y}}") from error
    if not isinstance(value, dict) or not all(
        isinstance(each, str) for pair in value.items() for each in pair
    ):
        raise UsageError(f"model: {name!r}: every part must be a path")
    return value


def shown_name(model: ModelName) -> str:
    """What files call a model that a recipe names so: no path of somebody's machine."""
    name = model if isinstance(model, str) else model.get("path", "")
    return Path(name).name if Path(name).expanduser().exists() else name


def _of_folder(folder: Path, source: str, given: dict[str, str]) -> ModelFiles:
    family = family_of_folder(folder)
    _require_known(given, family, ("path",))
    require_parts(folder, family, without=given)
    parts: dict[str, ModelPart | None] = {}
    for name, part in family.parts.items():
        parts[name] = FolderPart(folder / name, part) if (folder / name).is_dir() else None
    configs = {name: _config_in(folder / name) for name in family.parts}
    parts |= {name: _given_part(family, name, Path(path), configs) for name, path in given.items()}
    return ModelFiles(family, source, folder, parts, pipeline_settings(folder, family))


def _of_checkpoint(file: Path, source: str, given: dict[str, str]) -> ModelFiles:
    header = read_safetensors_header(file)
    own_configs = given.pop("config", None)
    family = _family_of_file(file, header, given.pop("family", None), own_configs)
    single = family.single_file
    if single is None:
        raise FileFormatError(f"{file}: models of the family {family.name} are not read from a single file")
    _require_known(given, family, ("path", "family", "config", "prediction"))
    schedule = _schedule(file, single, header, given.pop("prediction", None), told=own_configs is not None)
    folder = single.folder if own_configs is None else Path(own_configs).expanduser()
    configs = {name: _config_in(folder / name) for name in family.parts}
    if own_configs is None:
        configs[family.denoiser] |= single.derived(_native_shapes(header))
    parts: dict[str, ModelPart | None] = {}
    for name, part in family.parts.items():
        if name in given:
            parts[name] = _given_part(family, name, Path(given[name]).expanduser(), configs)
        elif part.kind == "network":
            parts[name] = checkpoint_part(file, part, configs[name], single.layouts[name](configs[name]))
        else:
            parts[name] = _without_weights(family, name, folder / name, schedule)
    found = ModelFiles(family, source, file, parts)
    _require_all(file, found, single, header)
    return found


def _family_of_file(file: Path, header: Header, named: str | None, own_configs: str | None) -> type[Family]:
    """The family that a checkpoint is of: as the recipe says, as its configs say, or by its keys."""
    families: dict[str, type[Family]] = registry.all_of("family")
    if named is not None:
        if named not in families:
            raise UsageError(f"model: no family is called {named!r}.{suggest(named, families)}")
        return families[named]
    if own_configs is not None:
        return family_of_folder(Path(own_configs).expanduser())
    shapes = {key: info.shape for key, info in header.tensors.items()}
    fitting = [each for each in families.values() if each.single_file and each.single_file.fits(shapes)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(name for name, family in families.items() if family.single_file)
    raise FileFormatError(
        f"{file}: is no checkpoint of a model that lorimer knows; its keys begin like "
        f"{min(header.tensors, default='')!r}. Known as single files: {known}. For others give a folder in "
        "diffusers' layout"
    )


def _given_part(family: type[Family], name: str, path: Path, configs: Mapping[str, Config]) -> ModelPart:
    """A part that the recipe takes from elsewhere: a folder of that part, or a file of its weights.

    Raises:
        UsageError: there is nothing, or a file where only a folder will do.
        FileFormatError: the file does not hold that part, or more than it.
    """
    part, path = family.parts[name], path.expanduser()
    if path.is_dir():
        return FolderPart(path, part)
    if not path.is_file():
        raise UsageError(f"model: {name}: there is no {path}")
    if part.kind != "network":
        raise UsageError(f"model: {name}: {path} is a file; give the folder that has {part.config_file}")
    layouts = family.single_file.layouts[name](configs[name]) if family.single_file else ()
    found = checkpoint_part(path, part, configs[name], (*layouts, PLAIN))
    if found is None:
        raise FileFormatError(f"{path}: holds no {name} of a {family.name} model")
    return found


def _without_weights(family: type[Family], name: str, folder: Path, schedule: Config) -> ModelPart | None:
    """A tokenizer or scheduler for a checkpoint; None where it has to be given."""
    part = family.parts[name]
    if part.kind == "scheduler":
        return SetScheduler(folder, schedule)
    if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
        return FolderPart(folder, part)
    if (folder / part.config_file).is_file():
        return MadeTokenizer(read_json(folder / part.config_file))
    return None


def _require_all(file: Path, found: ModelFiles, single: SingleFile, header: Header) -> None:
    """Raise `FileFormatError` for parts that are missing, and for keys that nobody knows."""
    missing = [
        name for name, part in found.parts.items() if part is None and not found.family.parts[name].optional
    ]
    if missing:
        shown = ", ".join(f"{name}: ..." for name in missing)
        raise FileFormatError(
            f"{file}: lacks {', '.join(missing)}, as many {found.family.name} checkpoints do. Say where they "
            f"are, each a folder of that part or (networks) a file: model: {{path: {file.name}, {shown}}}"
        )
    used = {
        key
        for part in found.networks.values()
        if isinstance(part, CheckpointPart) and part.file == file
        for key in part.held
    }
    known = _given_prefixes(found, single)
    rest = [key for key in header.tensors if key not in used and not single.is_left_out(key)]
    unknown = [key for key in rest if not (known and key.startswith(known))]
    if unknown:
        shown = "\n  ".join(sorted(unknown)[:10])
        raise FileFormatError(
            f"{file}: {len(unknown)} of its tensors are of no part of a {found.family.name} model:\n  {shown}"
        )


def _given_prefixes(found: ModelFiles, single: SingleFile) -> tuple[str, ...]:
    """What keys begin with in a checkpoint for those parts that the recipe takes from elsewhere."""
    elsewhere = [name for name, part in found.networks.items() if found.place not in part.files()]
    layouts = [
        layout for name in elsewhere for layout in single.layouts[name](dict(found.networks[name].config))
    ]
    return tuple({prefix for layout in layouts for prefix in layout.prefixes if prefix})


def _schedule(file: Path, single: SingleFile, header: Header, given: str | None, *, told: bool) -> Config:
    """What of the sampler's config the recipe or the file says: what the denoiser predicts, and whether its
    noise schedule ends in pure noise. `told`: the config is the model's own, so it is right.

    Raises:
        UsageError: neither says what is predicted, and such models differ.
    """
    if single.predictions == ("flow",):
        return {}
    if given is not None and given not in _PREDICTIONS:
        raise UsageError(f"model: prediction must be {' or '.join(_PREDICTIONS)}, not {given!r}")
    says = header.metadata.get("modelspec.prediction_type") or header.metadata.get("prediction_type", "")
    marked = "v_prediction" if "v_pred" in header.tensors or says == "v" else None
    prediction = given or marked or (says if says in _PREDICTIONS else None)
    if prediction is None and told:
        return {}
    if prediction is None and len(single.predictions) > 1:
        raise UsageError(
            f"{file}: does not say whether it predicts noise or velocity, and both kinds exist. Say it: "
            f"model: {{path: {file.name}, prediction: v_prediction}} for models of 768 pixels, "
            "prediction: epsilon for 512-base"
        )
    schedule: Config = {"prediction_type": prediction or single.predictions[0]}
    if "ztsnr" in header.tensors:
        schedule |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return schedule


def _require_known(given: Mapping[str, str], family: type[Family], fields: tuple[str, ...]) -> None:
    """Raise `UsageError` for names in a recipe's mapping that are no part of such a model."""
    known = (*fields, *family.parts)
    for name in given:
        if name not in known:
            raise UsageError(
                f"model: {name!r} is no part of a {family.name} model.{suggest(name, known)} "
                f"Known here: {', '.join(known)}"
            )


def _config_in(folder: Path) -> Config:
    """The config of a network in its folder; empty where there is none."""
    file = folder / "config.json"
    return dict(read_json(file)) if file.is_file() else {}


def _native_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Shapes by the denoiser's keys without their prefix."""
    shapes = {}
    for key, info in header.tensors.items():
        prefix = next(prefix for prefix in DENOISER if key.startswith(prefix))
        shapes[key.removeprefix(prefix)] = info.shape
    return shapes
