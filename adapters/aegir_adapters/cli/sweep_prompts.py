"""Prompts and answers as they are typed: text, token ids, or a file of pairs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from aegir_stream.errors import OptionError

__all__ = ["STANDARD_INPUT", "Prompt", "read_pairs", "text_or_ids"]

Prompt: TypeAlias = str | tuple[int, ...]
"""Text, or token ids."""

STANDARD_INPUT = "-"

_IDS = re.compile(r"\s*\d{1,9}(?:\s*,\s*\d{1,9}|\s+\d{1,9})*\s*,?\s*")
_MOST_SHOWN = 120


def text_or_ids(option: str, text: str | None, ids: str | None) -> Prompt | None:
    """Return a prompt that is given as text or as token ids; `None` if it is not given.

    Args:
        option: name of the option that takes it as text; `option_ids` takes ids.
        text: what was typed as text.
        ids: numbers, with commas or spaces between.

    Raises:
        OptionError: both are given, or the numbers are none.
    """
    if ids is None:
        return text
    named = f"{option}_ids"
    if text is not None:
        raise OptionError(
            f"Expected `{option}` or `{named}`, got both: `{_cut(text)}` and `{_cut(ids)}`",
            hint=f"Leave out --{option} or --{option}-ids",
        )
    if not _IDS.fullmatch(ids):
        raise OptionError(
            f"Expected `{named}` to be token ids with commas between, got `{_cut(ids)}`",
            hint=f"For example --{option}-ids 61,35,4; text is given with --{option}",
        )
    return tuple(map(int, ids.replace(",", " ").split()))


def read_pairs(name: str) -> tuple[dict[str, Any], ...]:
    """Return the pairs of prompts that a file holds: a JSON object on each line.

    Args:
        name: a path; `-` is the standard input.

    Raises:
        OptionError: it cannot be read, holds no pair, or a line is no JSON object.
    """
    where = "the standard input" if name == STANDARD_INPUT else name
    lines = _read(name).splitlines()
    pairs = tuple(
        _pair(line, f"{where}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    )
    if not pairs:
        raise OptionError(
            f"Expected `pairs` to be a file with a JSON object on each line, got `{where}`, which "
            "is empty",
            hint='A line is such as {"prompt": "...", "clean_prompt": "...", "answer": "..."}',
        )
    return pairs


def _read(name: str) -> bytes:
    if name == STANDARD_INPUT:
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise OptionError(
            f"Expected `pairs` to be a file, got `{name}`, which cannot be read: {error.strerror}",
            hint="Name a file of JSON lines, or - for the standard input",
        ) from error


def _pair(line: bytes, where: str) -> dict[str, Any]:
    try:
        pair = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_object(where, line, f"{error}") from None
    if not isinstance(pair, dict):
        raise _no_object(where, line, "it is JSON, but no object")
    return pair


def _no_object(where: str, line: bytes, why: str) -> OptionError:
    got = _cut(line.decode(errors="replace"))
    return OptionError(
        f"Expected a line of `pairs` to be a JSON object, got `{got}` ({where}): {why}",
        hint='Such as {"prompt": "...", "clean_prompt": "...", "answer": "..."}',
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
