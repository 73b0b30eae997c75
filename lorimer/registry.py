"""Finds methods, formats, tasks and families of models by where their files lie; there is no list.

``lorimer/adapters/lora.py`` holds the method ``lora``; ``lorimer/tasks/text_to_image.py`` the task
``text-to-image``. A file whose name starts with an underscore is a part, not a plugin. Another
package joins by having folders of the same names and saying so, either in its metadata

    [project.entry-points."lorimer"]
    anything = "my_package"

or at run time with ``lorimer.registry.add_package("my_package")``. Listing names imports nothing of
them, so it is quick and needs no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from lorimer.errors import UsageError, suggest

if TYPE_CHECKING:
    from lorimer.adapters._base import Method

# kind -> (folder in a package, module and class that every plugin of the kind derives from)
_KINDS = {
    "method": ("adapters", "lorimer.adapters._base", "Method"),
    "format": ("formats", "lorimer.formats._base", "Format"),
    "task": ("tasks", "lorimer.tasks._base", "Task"),
    "family": ("families", "lorimer.families._base", "Family"),
}
_PARTS = {"safe_io"}  # modules beside the plugins that are none
_packages = ["lorimer"]


def add_package(package: str) -> None:
    """Also look for plugins in the folders of `package`, which must be importable."""
    if package not in _packages:
        _packages.append(package)
        _modules.cache_clear()


def remove_package(package: str) -> None:
    """Undo `add_package`."""
    _packages.remove(package)
    _modules.cache_clear()


def names(kind: str) -> list[str]:
    """The sorted names of every plugin of `kind` ("method", "format", "task" or "family")."""
    return sorted(_modules(kind))


def get(kind: str, name: str) -> Any:
    """The plugin class of `kind` called `name`.

    Raises:
        UsageError: there is none of that name; the nearest is suggested and all are listed.
    """
    modules = _modules(kind)
    if name not in modules:
        raise UsageError(
            f"no {kind} is called {name!r}.{suggest(name, modules)} Known: {', '.join(sorted(modules))}"
        )
    _, base_module, base_name = _KINDS[kind]
    base = getattr(importlib.import_module(base_module), base_name)
    module = importlib.import_module(modules[name])
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, base) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UsageError(f"{module.__name__} must define exactly one {base_name}; it defines {len(found)}")
    return found[0]


def method(name: str, **fields: Any) -> Method:
    """A configured method by name: `lorimer.method("loha", rank=4, alpha=8)`.

    Raises:
        UsageError: no method of that name, no such field, or an impossible value.
    """
    plugin = get("method", name)
    known = [field.name for field in dataclasses.fields(plugin)]
    for field in fields:
        if field not in known:
            raise UsageError(
                f"{name} has no field {field!r}.{suggest(field, known)} Its fields: {', '.join(known)}"
            )
    made: Method = plugin(**fields)
    return made


def all_of(kind: str) -> dict[str, Any]:
    """Every plugin class of `kind`, by name; imports them all."""
    return {name: get(kind, name) for name in names(kind)}


@cache
def _modules(kind: str) -> dict[str, str]:
    """Plugin name -> module path, over every known package."""
    folder = _KINDS[kind][0]
    declared = [entry.value for entry in entry_points(group="lorimer")]
    modules: dict[str, str] = {}
    for package in [*_packages, *declared]:
        spec = importlib.util.find_spec(f"{package}.{folder}")
        for info in pkgutil.iter_modules(spec.submodule_search_locations) if spec else ():
            if not info.name.startswith("_") and info.name not in _PARTS:
                modules[info.name.replace("_", "-")] = f"{package}.{folder}.{info.name}"
    return modules
