"""The polite layer: a secondary checkout keeps off what is the primary's, unless told otherwise.

The locks behind it are those of the resources themselves: the lease of a directory, and the port.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aegir_adapters.worktree.checkout import Checkout, checkout_of
from aegir_adapters.worktree.place import NotACheckoutError
from aegir_adapters.worktree.ports import listener
from aegir_adapters.worktree.resources import Setting, directory_setting, port_setting
from aegir_adapters.worktree.role import role_of
from aegir_stream.errors import PortInUseError, RefusedError
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import lease_of

__all__ = ["ALLOW_VARIABLE", "guard_directory", "guard_port", "require_free"]

ALLOW_VARIABLE = "ALLOW_SECONDARY"
"""Environment variable that lets a secondary checkout use resources that are its own: `1`."""


def guard_directory(
    directory: Path,
    *,
    environment: Mapping[str, str],
    setting: Setting[Path] | None = None,
    start: Path | None = None,
) -> None:
    """Return if this checkout may write to a directory; a primary may, whatever it is.

    A directory is the primary's if it is the default one, lies in the primary's checkout, or was
    last held by a process that was started there.

    Args:
        directory: what is about to be written to.
        environment: the variables in force.
        setting: names the variable and the default; those of the output directory if absent.
        start: a directory in the checkout; the working directory if absent.

    Raises:
        RefusedError: this checkout is secondary, and was not allowed to, or the directory is the
            primary's.
        OptionError: the role in the environment is none.
    """
    setting = setting or directory_setting(environment)
    what = f"the output directory `{directory}`"
    checkout = _secondary_with_leave(what, environment, setting.variable, start)
    reason = _why_the_primarys(directory, setting, checkout) if checkout else None
    if checkout and reason:
        raise _still_refused(checkout, what, reason, variable=setting.variable)


def guard_port(
    port: int,
    *,
    environment: Mapping[str, str],
    setting: Setting[int] | None = None,
    start: Path | None = None,
) -> None:
    """Return if this checkout may listen on a port; a primary may, whatever it is.

    Args:
        port: the port; 0 is a free one.
        environment: the variables in force.
        setting: names the variable and the default; those of the gateway if absent.
        start: a directory in the checkout; the working directory if absent.

    Raises:
        RefusedError: this checkout is secondary, and was not allowed to, or the port is the
            primary's, which is the default one.
        OptionError: the role in the environment is none.
    """
    setting = setting or port_setting(environment)
    what = f"port {port}"
    checkout = _secondary_with_leave(what, environment, setting.variable, start)
    if checkout and port == setting.default:
        reason = "it is the default one"
        raise _still_refused(checkout, what, reason, variable=setting.variable)


def require_free(port: int, *, variable: str, host: str = "127.0.0.1") -> None:
    """Return if nobody listens on a port.

    Raises:
        PortInUseError: somebody does; says who, as far as the system tells.
    """
    there = listener(port, host) if port else None
    if there:
        raise PortInUseError(
            f"Port {port} of {host} is in use by {there}",
            hint=f"Choose another one with --port or {variable}",
        )


def _secondary_with_leave(
    what: str, environment: Mapping[str, str], variable: str, start: Path | None
) -> Checkout | None:
    """Return the checkout, if it is secondary; outside of any there is nobody to fight.

    Raises:
        RefusedError: it is secondary, and nobody gave it leave.
    """
    directory = start or Path.cwd()
    try:
        role = role_of(directory, environment)
    except NotACheckoutError:
        return None
    if role == "primary":
        return None
    checkout = checkout_of(directory)
    if environment.get(ALLOW_VARIABLE) != "1":
        raise RefusedError(
            f"`{checkout.top_level}` is a secondary checkout, and {what} is left to the primary",
            hint=f"Run this in the primary{_named(checkout)}, or here with: "
            f"{ALLOW_VARIABLE}=1 {variable}=ANOTHER",
        )
    return checkout


def _still_refused(checkout: Checkout, what: str, reason: str, *, variable: str) -> RefusedError:
    return RefusedError(
        f"{ALLOW_VARIABLE}=1 is set, but {what} is the primary checkout's: {reason}",
        hint=f"Choose one of your own for `{checkout.top_level}`: {variable}=...",
    )


def _why_the_primarys(directory: Path, setting: Setting[Path], checkout: Checkout) -> str | None:
    wanted = directory.resolve()
    if wanted.is_relative_to(checkout.top_level):
        return None
    if wanted == setting.default.resolve():
        return "it is the default one"
    others = [other for other in _primary(checkout) if other != checkout.top_level]
    for primary in others:
        if wanted.is_relative_to(primary):
            return f"it lies in {primary}"
        holder = lease_of(RunDirectory.at(wanted)).holder
        started_in = Path(holder.directory) if holder and holder.directory else None
        if started_in and _lies_in(started_in, primary, but_not=checkout.top_level):
            return f"it was last used by {holder}"
    return None


def _lies_in(path: Path, top_level: Path, *, but_not: Path) -> bool:
    return path.is_relative_to(top_level) and not path.is_relative_to(but_not)


def _primary(checkout: Checkout) -> list[Path]:
    """Return the top level of the primary checkout; none for worktrees of a bare repository."""
    return [tree.path for tree in checkout.worktrees if tree.role == "primary"]


def _named(checkout: Checkout) -> str:
    return "".join(f", `{path}`" for path in _primary(checkout))
