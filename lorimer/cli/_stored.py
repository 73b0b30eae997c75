"""From what a person names on the command line to a picture model in its files, and to where its merged copy
goes. Commands import this file when they run, since it imports torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lorimer
from lorimer.adapters._state import AdapterState
from lorimer.cli._pictures import named_base, recipe_of
from lorimer.cli._runs import adapter_file
from lorimer.errors import FileFormatError, UsageError
from lorimer.formats.safe_io import PICKLE_SUFFIXES, pieces_of, publish_folder, write_files_atomic
from lorimer.ops.merge_files import FilesReport, merge_into_files, write_merged_as
from lorimer.ops.stored import Contents, StoredModel
from lorimer.tasks._diffusers_folder import require_picture_packages
from lorimer.tasks._model_files import ModelFiles, ModelName, model_files
from lorimer.tasks._model_parts import NetworkPart, shapes_of

# What a copied folder leaves behind: weights for other frameworks, and pickles.
_NOT_COPIED = PICKLE_SUFFIXES | {".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".xml"}


def picture_files(name: ModelName) -> tuple[ModelFiles, StoredModel]:
    """The files of a picture model, and what they hold of its networks.

    Raises: as `lorimer.tasks._model_files.model_files`.
    """
    require_picture_packages()
    files = model_files(name)
    skeleton = nn.Module()
    contents: dict[Path, dict[str, tuple]] = {}  # type: ignore[type-arg]
    for component, part in files.networks.items():
        if component in files.family.adaptable():
            skeleton.add_module(component, part.skeleton())
        for file, held in _named(component, part).items():
            for key, parameters in held.items():
                contents.setdefault(file, {}).setdefault(key, ())
                contents[file][key] += parameters
    adaptable = tuple(name for name in files.family.adaptable() if name in files.networks)
    skeleton.components = adaptable  # type: ignore[assignment]
    return files, StoredModel(files.source, skeleton, contents)


def _named(component: str, part: NetworkPart) -> dict[Path, Contents]:
    """What a part's files hold, under names that begin with the component."""
    return {
        file: {
            key: tuple(replace(each, name=f"{component}.{each.name}") for each in held)
            for key, held in contents.items()
        }
        for file, contents in part.contents().items()
    }


def merging(source: Path, model_name: str | None, strength: float, dtype: torch.dtype | None) -> Merging:
    """The adapter of a run folder or file on its way into the files of its base model.

    Raises:
        UsageError: the run has no adapter yet or draws no pictures; or nothing says which base is meant.
        FileFormatError: the file is broken.
    """
    file = adapter_file(source)
    state = lorimer.read(file)
    recipe = recipe_of(source)
    named = model_name or (recipe and recipe.model) or named_base(source, state.metadata)
    files, stored = picture_files(named)
    return Merging(files, stored, state, strength, dtype, str(file))


@dataclass(frozen=True)
class Merging:
    """An adapter on its way into a model's files.

    Attributes:
        dtype: precision of what is written; None keeps each tensor's own.
    """

    files: ModelFiles
    model: StoredModel
    state: AdapterState
    strength: float
    dtype: torch.dtype | None
    source: str

    def write(self, output: Path) -> FilesReport:
        """Write the merged model: a checkpoint file where `output` is named so, else a folder.

        Raises:
            UsageError: there is something of that name, or a file would have to become a folder.
        """
        if output.exists():
            raise UsageError(f"{output} exists already; name another folder or remove it")
        if output.suffix != ".safetensors":
            return self._into_folder(output)
        if self.files.place.is_file():
            return self._run(merge_into_files, {self.files.place: output})
        layout, convolutions = self._native_layout()
        told = self._schedule()
        return self._run(write_merged_as, layout, output, convolutions=convolutions, **told)

    def _run(self, merge: Callable[..., FilesReport], *arguments: object, **options: object) -> FilesReport:
        return merge(
            self.model,
            self.state,
            *arguments,
            strength=self.strength,
            dtype=self.dtype,
            source=self.source,
            **options,
        )

    def _into_folder(self, output: Path) -> FilesReport:
        """Copy the model's folder, its weights merged, whole or not at all."""
        if self.files.place.is_file():
            raise UsageError(
                f"{self.files.place} is one file, and so is what comes of it: name an output that ends in "
                ".safetensors"
            )
        folder = self.files.place
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent) as beside:
            staged = Path(beside) / "model"
            for file in _copied(self.files):
                write_files_atomic({staged / file.relative_to(folder): pieces_of(file)})
            inside = [file for file in self.model.contents if file.is_relative_to(folder)]
            report = self._run(merge_into_files, {file: staged / file.relative_to(folder) for file in inside})
            publish_folder(staged, output)
        return replace(report, files=[output])

    def _native_layout(self) -> tuple[Contents, tuple[str, ...]]:
        """The layout of the family's checkpoint files, for all networks of this model; and which of its keys
        are convolutions there."""
        single = self.files.family.single_file
        if single is None:
            raise FileFormatError(
                f"models of the family {self.files.family.name} are not written as one file; name a folder"
            )
        layout: dict[str, tuple] = {}  # type: ignore[type-arg]
        convolutions: tuple[str, ...] = ()
        for component, part in self.files.networks.items():
            first = single.layouts[component](dict(part.config))[0]
            for key, held in first.held(shapes_of(part.skeleton())).items():
                named = tuple(replace(each, name=f"{component}.{each.name}") for each in held)
                layout[first.prefixes[0] + key] = named
            convolutions += first.convolutions
        return layout, convolutions or ("\n",)

    def _schedule(self) -> dict[str, Any]:
        """How a checkpoint file says what its model predicts: in the header, and by keys that other programs
        look for."""
        if self.files.family.process == "flow":
            return {}
        scheduler = self.files.parts["scheduler"]
        assert scheduler is not None
        config = scheduler.load(torch.float32).config
        if config.prediction_type != "v_prediction":
            return {"metadata": {"modelspec.prediction_type": "epsilon"}}
        zero = getattr(config, "rescale_betas_zero_snr", False)
        return {
            "metadata": {"modelspec.prediction_type": "v"},
            "marks": ("v_pred", "ztsnr") if zero else ("v_pred",),
        }


def _copied(files: ModelFiles) -> list[Path]:
    """What of a model's folder is copied as it is: all in the folders of its parts but their weights, and
    what stands beside them."""
    weights = {file for part in files.networks.values() for file in part.files()}
    beside = [path for path in files.place.iterdir() if path.suffix in (".json", ".md", ".txt")]
    within = [path for name in files.parts for path in (files.place / name).rglob("*")]
    return [
        path
        for path in (*beside, *within)
        if path.is_file() and path not in weights and path.suffix not in _NOT_COPIED
    ]
