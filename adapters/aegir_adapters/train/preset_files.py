"""Presets as TOML files: those that come along by name, a user's own by path."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from aegir_adapters.train.preset import Preset
from aegir_stream.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["decode_preset", "load_preset", "preset_names"]

_SUFFIX = ".toml"
_PATHS = (("policy", "model"), ("sae", "path"), ("prompts", "path"))
"""Keys whose values are paths; relative ones count from the file's directory."""

_OWNED = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+", re.ASCII)


def preset_names() -> list[str]:
    """Return the names of the presets that come along, the smallest first."""
    files = resources.files("aegir_adapters.train") / "presets"
    names = [file.name.removesuffix(_SUFFIX) for file in files.iterdir()]
    return sorted(names, key=lambda name: (name != "tiny", name.replace("-l0-50", "-l0-050")))


def load_preset(name: str) -> Preset:
    """Return the preset of a name, or that of a TOML file.

    Raises:
        OptionError: there is no such preset or file, it is no TOML, or it says what a preset
            cannot say.
    """
    if name.endswith(_SUFFIX):
        return _read(Path(name))
    if name not in preset_names():
        raise OptionError(
            f"Expected a preset ({', '.join(preset_names())}) or a path that ends with `.toml`,"
            f" got `{name}`",
            hint="aegir train --list-presets says what each is for",
        )
    file = resources.files("aegir_adapters.train") / "presets" / f"{name}{_SUFFIX}"
    return decode_preset(_parsed(file.read_text("utf-8"), name), source=f"the preset {name}")


def decode_preset(tables: Mapping[str, Any], *, source: str) -> Preset:
    """Return what tables say, if a preset can say it.

    Raises:
        OptionError: a key is unknown, or a value is of another type or out of range; names the
            source and the key.
    """
    _check_keys(tables, Preset, source=source, at="")
    try:
        return msgspec.convert(tables, Preset)
    except msgspec.ValidationError as error:
        raise OptionError(f"{error} - in {source}", hint="Correct the value") from error


def _read(path: Path) -> Preset:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise OptionError(
            f"The preset `{path}` cannot be read: {error.strerror}",
            hint=f"Name a TOML file, or one of {', '.join(preset_names())}",
        ) from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{error} - in `{path}`", hint="A preset is TOML in UTF-8") from error
    tables = _parsed(text, str(path))
    _anchor(tables, path.parent)
    return decode_preset(tables, source=f"`{path}`")


def _parsed(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{error} - in `{source}`", hint="A preset is TOML") from error


def _anchor(tables: dict[str, Any], directory: Path) -> None:
    """Make the paths in a user's file count from where it lies; ids of the hub stay as they are."""
    for table, key in _PATHS:
        values = tables.get(table)
        if not isinstance(values, dict) or not isinstance(path := values.get(key), str):
            continue
        anchored = directory / Path(path).expanduser()
        if not _may_be_id(table, path) or anchored.exists():
            values[key] = str(anchored)


def _may_be_id(table: str, path: str) -> bool:
    """Return whether a path may be an id on the hub: prompts are files, SAEs have an owner."""
    match table:
        case "policy":
            return not path.startswith(".")
        case "sae":
            return _OWNED.fullmatch(path) is not None
    return False


def _check_keys(tables: Mapping[str, Any], kind: Any, *, source: str, at: str) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in tables.items():
        if key not in fields:
            where = f"in table `{at}`" if at else "at the top"
            raise OptionError(
                f"Unknown key `{key}` {where} of {source}",
                hint=f"Known there are: {', '.join(fields)}",
            )
        inner = _struct_in(fields[key])
        if inner is not None and isinstance(value, dict):
            _check_keys(value, inner, source=source, at=f"{at}.{key}".removeprefix("."))


def _struct_in(annotation: Any) -> type[msgspec.Struct] | None:
    candidates = (annotation, *get_args(annotation))
    return next(
        (c for c in candidates if isinstance(c, type) and issubclass(c, msgspec.Struct)), None
    )
