"""What other programs call the layers of a family's models in adapter files.

The models were first written by others than diffusers, and files keep the names of that code, the native
ones. kohya's files join them by "_", ComfyUI reads them with "." as well:

    module path        transformer_blocks.3.attn.to_out.0
    native             double_blocks.3.img_attn.proj
    in files           lora_unet_double_blocks_3_img_attn_proj, diffusion_model.double_blocks.3.img_attn.proj

A native layer may hold several modules, one below the other in its rows: `img_attn.qkv` is to_q, to_k, to_v.
A family declares this as `Rule`s; both directions follow from them, and need no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

# Native names within a block -> the paths of the modules, or of the several that share the rows evenly.
Inner = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Rule:
    """One native layer and the modules that it holds. "{}" is any whole number, the same on both sides.

    Attributes:
        native: its native path.
        modules: the paths of the modules, in the order of their rows.
        shares: how the rows are shared among them, e.g. (1, 1, 1, 4).
        halves_swapped: where a weight holds just two matrices (a shift and a scale; it has twice as many rows
            as columns), the two stand in the opposite order.
    """

    native: str
    modules: tuple[str, ...]
    shares: tuple[int, ...] = (1,)
    halves_swapped: bool = False


def renamed(native: str, path: str, inner: Inner) -> tuple[Rule, ...]:
    """Rules for the layers within the block `native`, whose modules lie within `path`."""
    rules = []
    for name, own in inner.items():
        modules = (own,) if isinstance(own, str) else own
        whole = tuple(f"{path}.{module}" if path else module for module in modules)
        rules.append(Rule(f"{native}.{name}" if native else name, whole, (1,) * len(whole)))
    return tuple(rules)


def unchanged(path: str, inner: Iterable[str]) -> tuple[Rule, ...]:
    """Rules for layers within `path` whose native paths are their own."""
    return renamed(path, path, {name: name for name in inner})


@dataclass(frozen=True)
class Place:
    """Where a module lies in files: as which of the parts of which native layer.

    Attributes:
        native: the native layer's path, numbers filled in.
        modules: the modules that it holds.
        part: which of them this is.
    """

    native: str
    modules: tuple[str, ...]
    shares: tuple[int, ...]
    part: int
    halves_swapped: bool


@dataclass(frozen=True)
class TokenRows:
    """The embedding that new tokens are rows of.

    Attributes:
        module: its path in the component.
        key: how bundled embeddings call the component, e.g. "clip_l".
        count: rows before any token is added.
    """

    module: str
    key: str
    count: int


@dataclass(frozen=True)
class ComponentNames:
    """The names of one component's layers.

    Attributes:
        prefix: what its names begin with in kohya's files, e.g. "lora_unet_".
        rules: its native layers.
        by_module: kohya's files keep the modules' paths and not the native ones.
        vocabulary: for `by_module`: the words that may occur in a path, so that no layer needs a rule.
        tops: for `vocabulary`: the words that a path may begin with; any where there are none.
        level: what files put before the modules' paths, e.g. "text_model.".
        more_prefixes: what its names begin with in other programs' files, which keep the modules' paths.
        dotted: what its names begin with where "." is kept, e.g. "diffusion_model.".
        tokens: the embedding of its tokens, for a text encoder.
    """

    prefix: str
    rules: tuple[Rule, ...] = ()
    by_module: bool = False
    vocabulary: str = ""
    tops: str = ""
    level: str = ""
    more_prefixes: tuple[str, ...] = ()
    dotted: tuple[str, ...] = ()
    tokens: TokenRows | None = None

    def place(self, path: str) -> Place | None:
        """Where the module at `path` lies in kohya's files; None where it has no name there."""
        if self.level and path.startswith(self.level):
            return None
        if self.vocabulary:
            name = self.level + path
            return _alone(name, path) if self._spelled(name.replace(".", "_")) == name else None
        found = self._modules.find(self.level + path)
        if found is None:
            return None
        place = self._filled(*found)
        return _alone(self.level + path, path) if self.by_module else place

    def places(self, name: str, component: str = "") -> tuple[Place, ...]:
        """The modules in the layer that a file calls `name`, the component's prefix included, or the
        component's own name where "." is kept."""
        if name.startswith(self.prefix):
            rest = name.removeprefix(self.prefix)
            return self._by_native(rest) or self._by_path(rest)
        for prefix in (*self.dotted, f"{component}."):
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                found = self._by_native(rest) or self._by_path(rest)
                return found if found and rest in _spellings(found, self.level) else ()
        prefixes = [each for each in self.more_prefixes if name.startswith(each)]
        return self._by_path(name.removeprefix(prefixes[0])) if prefixes else ()

    def knows(self, path: str) -> bool:
        """Whether a module may lie at `path`."""
        return self.place(path) is not None

    def _by_native(self, name: str) -> tuple[Place, ...]:
        found = self._native.find(name)
        if found is None:
            return ()
        first = self._filled(*found)
        return tuple(
            Place(first.native, first.modules, first.shares, part, first.halves_swapped)
            for part in range(len(first.modules))
        )

    def _by_path(self, name: str) -> tuple[Place, ...]:
        """A module by its own path, the joints "." or "_"."""
        if self.vocabulary:
            path = self._spelled(name.replace(".", "_"))
        else:
            found = self._modules.find(name) or self._modules.find((self.level + name).replace(".", "_"))
            path = _fill(found[0].modules[found[1]], found[2]) if found else None
        if path is None:
            return ()
        own = path.removeprefix(self.level)
        return (_alone(self.level + own, own),)

    def _filled(self, rule: Rule, part: int, numbers: tuple[str, ...]) -> Place:
        modules = tuple(_fill(module, numbers).removeprefix(self.level) for module in rule.modules)
        return Place(_fill(rule.native, numbers), modules, rule.shares, part, rule.halves_swapped)

    def _spelled(self, name: str) -> str | None:
        """`name` with "." between its words, or None where a word is unknown."""
        words, place = [], 0
        while place < len(name):
            token = self._token.match(name, place)
            if token is None:
                return None
            words.append(token.group(1))
            place = token.end()
        is_whole = words and not name.endswith("_") and (not self.tops or words[0] in self.tops.split())
        return ".".join(words) if is_whole else None

    @cached_property
    def _token(self) -> re.Pattern[str]:
        # Longer words first, so that "conv_norm_out" is not taken for "conv". A word ends at "_" or the end.
        words = sorted(self.vocabulary.split(), key=len, reverse=True)
        return re.compile(rf"(\d+|{'|'.join(words)})(?:_|$)")

    @cached_property
    def _native(self) -> _Index:
        return _Index({rule.native: (rule, 0) for rule in self.rules})

    @cached_property
    def _modules(self) -> _Index:
        return _Index(
            {module: (rule, part) for rule in self.rules for part, module in enumerate(rule.modules)}
        )


@dataclass(frozen=True)
class FileNames:
    """What files say of a family: the names of its layers, and what header entries call it.

    Attributes:
        components: component -> names.
        architecture: ModelSpec's name of it, e.g. "stable-diffusion-v1"; of a model that predicts velocity
            `velocity_architecture`, where that is another.
        base_version: kohya's `ss_base_model_version`.
        side: of the pictures that such models were made for, in pixels.
        known_as: what header entries of other programs begin with, beside these two names.
        widths: end of a path -> how many inputs the layer has, which tells families with equal names apart.
        header: further entries of the header.
    """

    components: Mapping[str, ComponentNames] = field(default_factory=dict)
    architecture: str = ""
    velocity_architecture: str = ""
    base_version: str = ""
    side: int = 1024
    known_as: tuple[str, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)

    def place(self, path: str) -> Place | None:
        """Where the layer at `path`, component first, lies in kohya's files; its native path has the
        prefix, the paths of its modules have the component."""
        component, _, rest = path.partition(".")
        names = self.components.get(component)
        found = names.place(rest) if names else None
        return None if found is None or names is None else _whole(found, component, names.prefix)

    def places(self, name: str) -> tuple[Place, ...]:
        """The inverse: the modules in the layer that a file calls `name`."""
        for component, names in self.components.items():
            found = names.places(name, component)
            if found:
                return tuple(_whole(each, component, names.prefix) for each in found)
        return ()

    def token_rows(self, module: str) -> TokenRows | None:
        """The embedding at a path, component first; None where no new tokens can be added to it."""
        component, _, rest = module.partition(".")
        tokens = self.components[component].tokens if component in self.components else None
        return tokens if tokens and tokens.module == rest else None

    def token_keys(self) -> frozenset[str]:
        """How bundled embeddings call its text encoders."""
        return frozenset(names.tokens.key for names in self.components.values() if names.tokens)

    def module_path(self, component: str, path: str) -> str:
        """The module's path of a layer that files of diffusers and PEFT call `path` in a component."""
        names = self.components.get(component)
        return path.removeprefix(names.level) if names else path


class _Index:
    """Templates with "{}" for numbers, found by what they match, whether its joints are "." or "_"."""

    def __init__(self, templates: Mapping[str, tuple[Rule, int]]) -> None:
        self._by_shape: dict[str, list[tuple[tuple[str, ...], Rule, int]]] = {}
        for template, (rule, part) in templates.items():
            shape, numbers = _shape(template)
            self._by_shape.setdefault(shape, []).append((numbers, rule, part))

    def find(self, name: str) -> tuple[Rule, int, tuple[str, ...]] | None:
        """(rule, part, what "{}" stands for) of the template that is `name`."""
        shape, numbers = _shape(name)
        if "{}" in numbers:  # a template, which no layer is called
            return None
        for wanted, rule, part in self._by_shape.get(shape, ()):
            if all(want in ("{}", number) for want, number in zip(wanted, numbers, strict=True)):
                free = zip(wanted, numbers, strict=True)
                return rule, part, tuple(number for want, number in free if want == "{}")
        return None


_NUMBER = re.compile(r"(?<![^._])(?:\d+|\{\})(?![^._])")


def _shape(name: str) -> tuple[str, tuple[str, ...]]:
    """A name without its numbers and joints, and the numbers."""
    return _NUMBER.sub("#", name).replace(".", "_"), tuple(_NUMBER.findall(name))


def _fill(template: str, numbers: Iterable[str]) -> str:
    return template.format(*numbers)


def _alone(name: str, path: str) -> Place:
    return Place(name, (path,), (1,), 0, False)


def _spellings(places: tuple[Place, ...], level: str) -> set[str]:
    """What a name with dots may be: a native path, or that of a module, with or without its level."""
    paths = {module for place in places for module in place.modules}
    return {places[0].native, *paths, *(level + path for path in paths)}


def _whole(place: Place, component: str, prefix: str) -> Place:
    modules = tuple(f"{component}.{module}" for module in place.modules)
    native = prefix + place.native.replace(".", "_")
    return Place(native, modules, place.shares, place.part, place.halves_swapped)
