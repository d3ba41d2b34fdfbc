"""`aegir whoami`: which checkout this is, and whom it would meet on this host."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aegir_adapters.cli.pipe import quiet_pipe
from aegir_adapters.worktree import (
    ROLE_VARIABLE,
    Checkout,
    Listener,
    NotACheckoutError,
    Role,
    checkout_of,
    detect_role,
    directory_setting,
    listener,
    overriding_role,
    port_setting,
)
from aegir_stream.errors import OptionError
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import Holder, lease_of

__all__ = ["Gateway", "Identity", "OutputDirectory", "whoami"]

T = TypeVar("T")

WRONG_VARIABLE = 2
HERE = Path()


class OutputDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """The directory that a trainer would write to.

    Attributes:
        path: the directory.
        origin: `default`, or the variable that names it.
        held: whether a process trains into it now.
        holder: which one, or the last one.
    """

    path: Path
    origin: str
    held: bool
    holder: Holder | None


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """The port that a gateway would listen on.

    Attributes:
        port: the port; 0 is a free one.
        origin: `default`, or the variable that names it.
        listener: who listens there now.
    """

    port: int
    origin: str
    listener: Listener | None


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What `aegir whoami` prints; `None` is what does not exist or cannot be told.

    Attributes:
        role: the role in force.
        origin: `detected`, or the variable that overrides it.
        detected: the role detected.
        checkout: its directories, its branch, and the worktrees beside it.
        output_dir: the trainer's directory.
        gateway: the gateway's port.
        problems: why something above is missing.
        wrong: variables that hold what they may not, one sentence each.
    """

    role: Role | None
    origin: str | None
    detected: Role | None
    checkout: Checkout | None
    output_dir: OutputDirectory
    gateway: Gateway | None
    problems: list[str]
    wrong: list[str]


def whoami(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, as in a pipe; else a table.")
    ] = False,
) -> None:
    """Tell this checkout's role and directories, and who holds what it would use.

    Answers outside of a checkout as well. Exits with 2 if a variable holds what it may not.

    Example: aegir whoami --json | jq .role
    """
    identity = _identity(os.environ)
    with quiet_pipe():
        if as_json or not sys.stdout.isatty():
            plain = msgspec.to_builtins(identity, enc_hook=str)
            # A path may hold bytes that are no UTF-8, which this escapes and msgspec refuses.
            sys.stdout.write(json.dumps(plain) + "\n")
        else:
            _show(identity, Console())
    if identity.wrong:
        raise typer.Exit(WRONG_VARIABLE)


def _identity(environment: Mapping[str, str]) -> Identity:
    override, wrong_role = _tried(lambda: overriding_role(environment))
    detected, nowhere = _tried(lambda: detect_role(HERE))
    gateway, wrong_port = _tried(lambda: _gateway(environment))
    checkout = checkout_of(HERE) if detected else None
    role = override or (None if wrong_role else detected)
    origin = ROLE_VARIABLE if override else "detected"
    unlisted = checkout.unlisted if checkout else None
    return Identity(
        role=role,
        origin=origin if role else None,
        detected=detected,
        checkout=checkout,
        output_dir=_output_dir(environment),
        gateway=gateway,
        problems=[*filter(None, (nowhere, unlisted))],
        wrong=[*filter(None, (wrong_role, wrong_port))],
    )


def _tried(find: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return what is found, or why it is not."""
    try:
        return find(), None
    except (NotACheckoutError, OptionError) as error:
        return None, str(error)


def _output_dir(environment: Mapping[str, str]) -> OutputDirectory:
    setting = directory_setting(environment)
    holding = lease_of(RunDirectory.at(setting.value))
    return OutputDirectory(
        path=_absolute(setting.value),
        origin=setting.origin,
        held=holding.held,
        holder=holding.holder,
    )


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError:  # the working directory is gone
        return path


def _gateway(environment: Mapping[str, str]) -> Gateway:
    setting = port_setting(environment)
    there = listener(setting.value) if setting.value else None
    return Gateway(port=setting.value, origin=setting.origin, listener=there)


def _show(identity: Identity, console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(identity):
        table.add_row(name, _printable(text))
    console.print(table)
    if identity.checkout and identity.checkout.worktrees:
        console.print(_worktrees(identity.checkout))


def _lines(identity: Identity) -> Iterator[tuple[str, str]]:
    """Yield name and value of each line; a value of several lines has its name on the first."""
    yield "role", _role(identity)
    if checkout := identity.checkout:
        yield "top level", str(checkout.top_level)
        yield "git dir", str(checkout.git_dir)
        yield "common git dir", str(checkout.common_dir)
        yield "branch", _branch(checkout.branch, checkout.commit)
    directory, gateway = identity.output_dir, identity.gateway
    yield "output dir", f"{directory.path} ({directory.origin})"
    yield "", _held(directory)
    if gateway:
        yield "port", f"{gateway.port or 'any that is free'} ({gateway.origin})"
        yield "", f"in use by {gateway.listener}" if gateway.listener else "free"
    for problem in identity.problems + identity.wrong:
        yield "note", problem


def _role(identity: Identity) -> str:
    if identity.role is None:
        return "none (not inside a git checkout)" if not identity.wrong else "none (see below)"
    if identity.origin == "detected":
        return f"{identity.role} (detected)"
    return f"{identity.role} ({identity.origin}; detected: {identity.detected or 'none'})"


def _held(directory: OutputDirectory) -> str:
    if directory.held:
        return f"held by {directory.holder or 'another process'}"
    return f"free; last held by {directory.holder}" if directory.holder else "free"


def _branch(branch: str | None, commit: str | None) -> str:
    if branch:
        return branch
    return f"none, detached at {commit[:10]}" if commit else "unknown"


def _worktrees(checkout: Checkout) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "role", "branch"):
        table.add_column(name, no_wrap=True)
    table.add_column("worktree", overflow="fold")
    table.add_column("", overflow="fold")
    for tree in checkout.worktrees:
        states = {"locked": tree.locked, "prunable": tree.prunable}
        cells = (
            "*" if tree.path == checkout.top_level else "",
            tree.role or "bare",
            tree.branch or "-",
            str(tree.path),
            ", ".join(name for name, reason in states.items() if reason is not None),
        )
        table.add_row(*map(_printable, cells))
    return table


def _printable(text: str) -> Text:
    """Return a text without what a terminal would obey or could not encode."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Text("".join(shown))
