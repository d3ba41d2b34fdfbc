"""`aegir version`: what is installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

import typer

__all__ = ["version"]

LIBRARIES = ("msgspec", "anyio", "torch", "transformers", "trl", "starlette", "bokeh")


def version() -> None:
    """Print the versions of aegir-stream and of the libraries it works with.

    Example: aegir version
    """
    typer.echo(f"aegir-stream {version_of('aegir-stream')}")
    typer.echo(f"python {platform.python_version()}")
    for library in LIBRARIES:
        typer.echo(f"{library} {_installed(library)}")


def _installed(library: str) -> str:
    try:
        return version_of(library)
    except PackageNotFoundError:
        return "not installed"
