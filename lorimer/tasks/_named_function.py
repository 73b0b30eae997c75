"""Functions of a person's own that a recipe names. Naming one runs its module's code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorimer.errors import RecipeError, suggest


def named_function(place: str, name: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; `place` is where the recipe names it.

    Raises:
        RecipeError: there is no such module or function.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise RecipeError(f"{place}: {name!r} must be written as package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does, so that a module beside the recipe can be named
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(
            f"{place}: {module_name} cannot be imported: {error}. Modules are looked for in {here} and among "
            "installed packages"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RecipeError(f"{place}: {module_name} has no function {attribute!r}.{suggest(attribute, known)}")
    return function
