"""Layers and positions as they are typed: `all`, `3`, `-1`, `0:4`, or several of these. Pure."""

from __future__ import annotations

import re

from aegir_stream.errors import OptionError

__all__ = ["indices"]

_INDEX = re.compile(r"-?\d{1,9}")
_RANGE = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?(?::(\d{1,9}))?")


def indices(text: str, *, count: int, option: str) -> tuple[int, ...]:
    """Return what a text selects among `count` things, each once, in the order asked for.

    Args:
        text: `all`, or indices and ranges as Python has them, separated by commas.
        count: how many there are; negative indices count from the end.
        option: name of the option, for the error.

    Raises:
        OptionError: it is neither, or selects something that is not there, or nothing.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        found.update(dict.fromkeys(_selected(part.strip(), count, option, text)))
    if not found:
        raise _refusal(option, text, count)
    return tuple(found)


def _selected(part: str, count: int, option: str, text: str) -> tuple[int, ...]:
    if part == "all":
        return tuple(range(count))
    if _INDEX.fullmatch(part) and -count <= int(part) < count:
        return (int(part) % count,)
    matched = _RANGE.fullmatch(part)
    if matched is None or matched[3] == "0":
        raise _refusal(option, text, count)
    start, stop, step = (int(end) if end else None for end in matched.groups())
    if any(end is not None and not -count <= end <= count for end in (start, stop)):
        raise _refusal(option, text, count)
    return tuple(range(count)[start:stop:step])


def _refusal(option: str, text: str, count: int) -> OptionError:
    return OptionError(
        f"Expected `{option}` to be all, indices in 0..{count - 1} or ranges of them, got `{text}`",
        hint="For example 0,2 or 4:8 or -1, which is the last",
    )
