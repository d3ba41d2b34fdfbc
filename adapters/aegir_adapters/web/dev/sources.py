"""Which checkout the pages come from."""

from __future__ import annotations

from pathlib import Path

import msgspec

import aegir_adapters
import aegir_stream
from aegir_stream.errors import OptionError

__all__ = ["Sources", "sources_of"]

_WEB = Path("adapters/aegir_adapters/web")


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """The code that makes the pages.

    Attributes:
        web: directory of templates, styles and scripts.
        packages: directories of the Python code, each a package.
        roots: what has to come first where Python looks for modules; empty for what is installed.
    """

    web: Path
    packages: tuple[Path, ...]
    roots: tuple[Path, ...] = ()


def sources_of(checkout: Path | None, *, directory: Path) -> Sources:
    """Return where the pages come from.

    A checkout is used as it lies there, so one that `git worktree` has just made needs no virtual
    environment of its own.

    Args:
        checkout: its top directory; the checkout around `directory` if absent, and what is
            installed if there is none.
        directory: where one stands.

    Raises:
        OptionError: `checkout` is none of this project, or is older than its development server.
    """
    top = checkout.absolute() if checkout else _around(directory)
    if top is None:
        installed = (Path(aegir_adapters.__path__[0]), Path(aegir_stream.__path__[0]))
        return Sources(web=installed[0] / "web", packages=installed)
    if not (top / _WEB / "dev").is_dir():
        raise OptionError(
            f"Expected a checkout of aegir-stream, got `{top}`, which holds no `{_WEB / 'dev'}`",
            hint="Name another one with --checkout, or merge the branch that has it",
        )
    adapters = top / "adapters"
    packages = (adapters / "aegir_adapters", top / "aegir_stream")
    return Sources(web=top / _WEB, packages=packages, roots=(adapters, top))


def _around(directory: Path) -> Path | None:
    tops = (directory, *directory.parents)
    return next((top for top in tops if (top / _WEB).is_dir()), None)
