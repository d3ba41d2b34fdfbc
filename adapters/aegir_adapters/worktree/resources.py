"""What the checkouts of one host may fight over, and where each value comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from aegir_stream.config import DEFAULT_PORT, OUTPUT_DIR_VARIABLE, PORT_VARIABLE, P5Cfg
from aegir_stream.errors import OptionError

__all__ = ["DEFAULT_DIRECTORY", "Setting", "directory_setting", "port_setting"]

T = TypeVar("T")

DEFAULT_DIRECTORY = Path(P5Cfg().output_dir)
_HIGHEST_PORT = 65535


class Setting(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A value, and what it was taken from.

    Attributes:
        value: what is in force.
        default: what is in force where nothing is set: the primary checkout's.
        variable: name of the environment variable that overrides it.
        origin: `default`, or the name of the variable.
    """

    value: T
    default: T
    variable: str
    origin: str


def directory_setting(
    environment: Mapping[str, str],
    *,
    default: Path = DEFAULT_DIRECTORY,
    variable: str = OUTPUT_DIR_VARIABLE,
) -> Setting[Path]:
    """Return the output directory that is in force; an empty variable counts as unset."""
    text = environment.get(variable)
    return Setting(
        value=Path(text) if text else default,
        default=default,
        variable=variable,
        origin=variable if text else "default",
    )


def port_setting(
    environment: Mapping[str, str], *, default: int = DEFAULT_PORT, variable: str = PORT_VARIABLE
) -> Setting[int]:
    """Return the port that is in force; an empty variable counts as unset.

    Raises:
        OptionError: the variable holds no port.
    """
    text = environment.get(variable)
    if text and not (text.isascii() and text.isdigit() and int(text) <= _HIGHEST_PORT):
        raise OptionError(f"Expected a port from 0 to {_HIGHEST_PORT} in {variable}, got `{text}`")
    return Setting(
        value=int(text) if text else default,
        default=default,
        variable=variable,
        origin=variable if text else "default",
    )
