"""Which family of picture models an adapter is for, and with it what its layers are called in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass

from lorimer import registry
from lorimer.adapters._state import AdapterState
from lorimer.errors import FileFormatError
from lorimer.families._names import FileNames
from lorimer.formats._checks import shown
from lorimer.formats._fused import matrix_shape

# The fact that says it, in `AdapterState.metadata`.
FAMILY = "family"
# Header entries of other programs that tell it.
_TELLING = ("ss_base_model_version", "modelspec.architecture")


@dataclass(frozen=True)
class Chosen:
    """A family. `sure` says that no other would do as well."""

    name: str
    names: FileNames
    sure: bool


def family_to_write(state: AdapterState, format: str) -> Chosen:
    """The family whose names an adapter's layers get.

    Raises:
        FileFormatError: no family has these layers, or several with other names and nothing tells which.
    """
    paths = [*state.layers, *(_module(name) for name in state.full)]
    fitting = {name: names for name, names in _all().items() if _has(names, paths)}
    told = state.metadata.get(FAMILY)
    if not fitting or (told in _all() and told not in fitting):
        raise FileFormatError(_stranger(paths, told, format))
    widths = {path: shape[1] for path, layer in state.layers.items() if (shape := _shape(state, path))}
    fitting = _narrowed(fitting, told, lambda names: _matches(names, widths.items()))
    called = {tuple(map(names.place, state.layers)) for names in fitting.values()}
    if len(called) > 1:
        known = " or ".join(repr(name) for name in fitting)
        raise FileFormatError(
            f"the {format} format needs to know the family of models that the adapter is for, {known}, whose "
            f'layers it names differently. Say which: metadata={{"{FAMILY}": ...}} or --family'
        )
    return _first(fitting)


def family_to_read(
    layers: Iterable[str],
    shapes: Mapping[str, tuple[int, int]],
    tokens: Set[str],
    told: str | None,
    header: Mapping[str, str],
    where: str,
) -> Chosen:
    """The family whose names explain all of a kohya file's `layers`.

    Args:
        shapes: name of a layer -> (rows, columns) of its weight, where known.
        tokens: what it calls the text encoders of new tokens.
        told: the family that the file names, if it does.

    Raises:
        FileFormatError: there is none; the layers are listed.
    """
    layers = list(layers)
    known = {name: names for name, names in _all().items() if tokens <= names.token_keys()} or _all()
    fitting = {name: names for name, names in known.items() if all(map(names.places, layers))}
    if not fitting:
        unknown = [each for each in layers if not any(names.places(each) for names in _all().values())]
        what = shown(unknown or layers)
        raise FileFormatError(
            f"{where}: layers that no known U-Net, transformer or text encoder has: {what}"
            if unknown
            else f"{where}: its layers belong to no one known family of models together: {what}"
        )
    fitting = {name: names for name, names in fitting.items() if _can_share(names, shapes)} or fitting
    values = [header[entry].lower() for entry in _TELLING if entry in header]
    by_header = [name for name, names in fitting.items() if _told(names, values)]
    if told not in fitting and len(by_header) == 1:
        told = by_header[0]

    def is_as_wide(names: FileNames) -> bool:
        inputs = ((names.places(name)[0].modules[0], shape[1]) for name, shape in shapes.items())
        return _matches(names, inputs)

    return _first(_narrowed(fitting, told, is_as_wide))


def names_of(state: AdapterState) -> FileNames | None:
    """The names of the family of an adapter's model, told or seen from its layers; None where no family has
    them, which formats that keep the modules' paths can do without."""
    told = state.metadata.get(FAMILY)
    fitting = {name: names for name, names in _all().items() if _has(names, state.layers)}
    return _all()[str(told)] if told in _all() else next(iter(_by_size(fitting).values()), None)


def names_in_files(told: str | None, paths: Iterable[str]) -> FileNames | None:
    """The same for paths as files of diffusers and PEFT have them, component first."""
    split = [path.partition(".") for path in paths]

    def fits(names: FileNames) -> bool:
        return _has(names, [f"{part}.{names.module_path(part, rest)}" for part, _, rest in split])

    fitting = {name: names for name, names in _all().items() if fits(names)}
    return _all()[str(told)] if told in _all() else next(iter(_by_size(fitting).values()), None)


def _all() -> dict[str, FileNames]:
    return {name: plugin.kohya for name, plugin in registry.all_of("family").items()}


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _has(names: FileNames, paths: Iterable[str]) -> bool:
    return all(names.place(path) or names.token_rows(path) for path in paths)


def _shape(state: AdapterState, path: str) -> tuple[int, int] | None:
    known = registry.get("method", state.method).tensors
    tensors = state.layers[path].tensors
    return matrix_shape({known.get(name, {}).get("kohya", ""): tensor for name, tensor in tensors.items()})


def _matches(names: FileNames, widths: Iterable[tuple[str, int]]) -> bool:
    """Whether a layer is as wide as this family's alone."""
    return any(
        path.endswith(f".{ending}") and own == width
        for path, width in widths
        for ending, own in names.widths.items()
    )


def _can_share(names: FileNames, shapes: Mapping[str, tuple[int, int]]) -> bool:
    """Whether the rows of layers that are several modules here can be shared out among them."""
    return all(rows % sum(names.places(name)[0].shares) == 0 for name, (rows, _) in shapes.items())


def _told(names: FileNames, values: Iterable[str]) -> bool:
    known = (names.base_version, names.architecture, *names.known_as)
    return any(value.startswith(each.lower()) for value in values for each in known if each)


def _narrowed(
    fitting: dict[str, FileNames], told: str | None, by_width: Callable[[FileNames], bool]
) -> dict[str, FileNames]:
    if told in fitting:
        return {str(told): fitting[str(told)]}
    matching = {name: names for name, names in fitting.items() if by_width(names)}
    return matching or fitting


def _by_size(families: dict[str, FileNames]) -> dict[str, FileNames]:
    """Families that know more layers first: what would do for two is likelier of the larger."""
    order = sorted(families, key=lambda name: -sum(len(c.rules) for c in families[name].components.values()))
    return {name: families[name] for name in order}


def _first(fitting: dict[str, FileNames]) -> Chosen:
    name, names = next(iter(_by_size(fitting).items()))
    return Chosen(name, names, len(fitting) == 1)


def _stranger(paths: Iterable[str], told: str | None, format: str) -> str:
    paths = list(paths)
    families = {told: _all()[told]} if told in _all() else _all()
    parts = {component for names in families.values() for component in names.components}
    others = [part for part in dict.fromkeys(path.partition(".")[0] for path in paths) if part not in parts]
    if others:
        known = ", ".join(sorted(parts))
        of = f" of {told!r}" if told in _all() else ""
        return (
            f"the {format} format knows no component {others[0]!r}{of}, only {known}; use 'lorimer' or 'peft'"
        )
    strange = [path for path in paths if not any(_has(names, [path]) for names in families.values())]
    whose = f"{told!r}" if told in _all() else "any family of models that lorimer knows"
    if not strange:
        return (
            f"the {format} format has no names for these layers together: no one family has them all. "
            "Use format 'diffusers' or 'lorimer'"
        )
    return (
        f"the {format} format has no names for layers that are not of {whose}: {shown(strange)}. "
        "Use format 'diffusers' or 'lorimer'"
    )
