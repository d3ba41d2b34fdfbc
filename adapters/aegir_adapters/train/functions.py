"""Functions that are named in text, as `MODULE:FUNCTION`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aegir_stream.errors import AegirError

__all__ = ["FunctionNameError", "function_of"]


class FunctionNameError(AegirError, ImportError):
    """A text names no function that can be imported."""


def function_of(name: str) -> Callable[..., Any]:
    """Return the function that a text names.

    Modules in the working directory are found, as `python -m` would. What the module itself raises
    while it is imported is raised.

    Raises:
        FunctionNameError: the text is not `MODULE:FUNCTION`, the module cannot be imported, or
            holds no such function.
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise FunctionNameError(
            f"Expected MODULE:FUNCTION, got `{name}`", hint="For example: rewards:graded"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise FunctionNameError(f"`{module_name}` cannot be imported: {error}") from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise FunctionNameError(f"`{module_name}` holds no function `{path}`")
    return found  # type: ignore[no-any-return]  # it was found by name
