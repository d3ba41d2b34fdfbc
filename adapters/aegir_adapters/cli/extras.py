"""Commands whose dependencies are optional say so before they start."""

from __future__ import annotations

from importlib.util import find_spec

from aegir_stream.errors import MissingExtraError

__all__ = ["require"]


def require(*modules: str, extra: str) -> None:
    """Return if the modules of an extra are installed.

    Raises:
        MissingExtraError: one of them is not; names it and the command that installs it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtraError(module, extra=extra)
