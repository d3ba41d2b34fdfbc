"""How a bad request is refused: by field, value, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from aegir_stream.errors import OptionError

__all__ = ["RequestError", "cut", "refused_within"]

_SHOWN = 120


class RequestError(OptionError):
    """A request has a field that it may not have so.

    Attributes:
        field: name of the field; of a prompt pair's `pairs[2].answer`, counted from 0.
        value: what it was.
        allowed: what it may be.
    """

    def __init__(self, field: str, value: Any, *, allowed: str, hint: str | None = None) -> None:
        value = None if value is msgspec.UNSET else _plain(value)
        super().__init__(f"Expected `{field}` to be {allowed}, got {_shown(value)}", hint=hint)
        self.field = field
        self.value = value
        self.allowed = allowed

    def within(self, owner: str) -> RequestError:
        """Return the same error, of a field of a field."""
        field = f"{owner}.{self.field}"
        return RequestError(field, self.value, allowed=self.allowed, hint=self.hint)


@contextmanager
def refused_within(owner: str | None) -> Iterator[None]:
    """Name the owner of the field that the block refuses; `None` leaves its name as it is."""
    try:
        yield
    except RequestError as error:
        if owner is None:
            raise
        raise error.within(owner) from error


def cut(text: str) -> str:
    """Return the beginning of a text that is too long to be shown, and how long it is."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; of a float, JSON does not have infinity."""
    return value if isinstance(value, float) else msgspec.json.decode(msgspec.json.encode(value))


def _shown(value: Any) -> str:
    return "nothing" if value is None else cut(msgspec.json.encode(value).decode())
