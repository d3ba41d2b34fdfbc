"""Prompts as JSONL: one object a line, with a `prompt` and whatever else the reward wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from aegir_stream.errors import AegirError

__all__ = ["PromptFileError", "read_prompts"]


class PromptFileError(AegirError, ValueError):
    """A file of prompts cannot be read, or a line of it holds no prompt."""


class _Row(msgspec.Struct):
    """A line: text, or the messages of a conversation."""

    prompt: str | list[dict[str, Any]]


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSONL file, each with a `prompt` and the same keys as the first.

    Raises:
        PromptFileError: the file cannot be read, holds nothing, or a line is no such object; names
            the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise PromptFileError(f"`{path}` cannot be read: {error.strerror}") from error
    rows = [_row(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise PromptFileError(f"Expected prompts, got an empty file - {path}")
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            raise PromptFileError(
                f"Expected the keys {', '.join(rows[0])}, got {', '.join(row)}"
                f" - at prompt {number} of {path}"
            )
    return rows


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        msgspec.json.decode(line, type=_Row)
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PromptFileError(f"{error} - in {place}") from error
