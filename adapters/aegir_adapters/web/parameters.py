"""What a request for the stream may ask, and what a bad one is told. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

import msgspec
from starlette.datastructures import QueryParams

from aegir_stream.errors import AegirError
from aegir_stream.events import PassName
from aegir_stream.selection import Selection
from aegir_stream.source import Start

__all__ = ["ParameterError", "StreamRequest", "parse_stream_request"]


_NUMBER = re.compile(r"\d{1,15}")
_MAX_VALUES = 64
_MAX_CURSOR = 1024
_SHOWN = 80
_PASSES = frozenset(get_args(PassName))


class ParameterError(AegirError, ValueError):
    """A request parameter does not have a value that it may have.

    Attributes:
        parameter: its name.
        value: what it was, shortened.
        allowed: what it may be.
    """

    def __init__(self, parameter: str, value: str, *, allowed: str) -> None:
        self.parameter = parameter
        self.value = value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
        self.allowed = allowed
        super().__init__(f"Expected {allowed}, got `{self.value}` - at parameter `{parameter}`")


class StreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What one reader of the record stream asked for.

    Attributes:
        cursor: where it stopped reading, if it did.
        start: where to begin without a cursor.
        selection: which records to send.
        batch: whether each append is one event with an array as its body.
    """

    cursor: str | None = None
    start: Start = "checkpoint"
    selection: Selection = Selection()
    batch: bool = False

    @property
    def is_special(self) -> bool:
        """Whether this reader needs events of its own, rather than those that all share."""
        return self.batch or self.selection != Selection()


def parse_stream_request(query: QueryParams, *, last_event_id: str | None = None) -> StreamRequest:
    """Return what a request asks for.

    `Last-Event-ID` wins over `?cursor=`: a browser that connects again repeats the address it was
    first given and adds the header.

    Raises:
        ParameterError: a parameter is unknown, stands twice, or has a value it may not have.
    """
    for name in query:
        if name not in _PARSERS:
            raise ParameterError(name, ",".join(query.getlist(name)), allowed=_names())
    values = {name: parse(name, query.getlist(name)) for name, parse in _PARSERS.items()}
    return StreamRequest(
        cursor=last_event_id or values["cursor"],
        start=values["from"],
        selection=_selection(values),
        batch=values["batch"],
    )


def _selection(values: Mapping[str, Any]) -> Selection:
    first, last = values["step_min"], values["step_max"]
    if first is not None and last is not None and first > last:
        raise ParameterError("step_max", str(last), allowed=f"at least step_min, which is {first}")
    return Selection(
        layers=values["layer"],
        ranks=values["rank"],
        features=values["feature"],
        passes=values["pass"],
        step_min=first,
        step_max=last,
        every=values["every"],
    )


def _single(name: str, values: list[str]) -> str | None:
    if len(values) > 1:
        raise ParameterError(name, ",".join(values), allowed="one value")
    return values[0] if values else None


def _number(name: str, value: str, *, least: int = 0) -> int:
    if not _NUMBER.fullmatch(value) or int(value) < least:
        raise ParameterError(name, value, allowed=f"a whole number of at least {least}")
    return int(value)


def _numbers(name: str, values: list[str]) -> frozenset[int]:
    parts = [part for value in values for part in value.split(",")]
    if len(parts) > _MAX_VALUES:
        allowed = f"at most {_MAX_VALUES} whole numbers, separated by commas"
        raise ParameterError(name, ",".join(values), allowed=allowed)
    return frozenset(_number(name, part) for part in parts)


def _passes(name: str, values: list[str]) -> frozenset[str]:
    parts = frozenset(part for value in values for part in value.split(","))
    if not parts <= _PASSES:
        raise ParameterError(name, ",".join(values), allowed="any of " + ", ".join(sorted(_PASSES)))
    return parts


def _optional_number(name: str, values: list[str]) -> int | None:
    value = _single(name, values)
    return None if value is None else _number(name, value)


def _every(name: str, values: list[str]) -> int:
    value = _single(name, values)
    return 1 if value is None else _number(name, value, least=1)


def _start(name: str, values: list[str]) -> Start:
    value = _single(name, values)
    if value not in {None, "start", "checkpoint", "now"}:
        raise ParameterError(name, value or "", allowed="`start`, `checkpoint` or `now`")
    return cast("Start", value or "checkpoint")


def _switch(name: str, values: list[str]) -> bool:
    value = _single(name, values)
    if value not in {None, "0", "1"}:
        raise ParameterError(name, value or "", allowed="`0` or `1`")
    return value == "1"


def _cursor(name: str, values: list[str]) -> str | None:
    value = _single(name, values)
    if value and len(value) > _MAX_CURSOR:
        raise ParameterError(name, value, allowed="an `id` that this stream sent")
    return value or None


_PARSERS: Mapping[str, Callable[[str, list[str]], Any]] = {
    "cursor": _cursor,
    "from": _start,
    "layer": _numbers,
    "rank": _numbers,
    "feature": _numbers,
    "pass": _passes,
    "step_min": _optional_number,
    "step_max": _optional_number,
    "every": _every,
    "batch": _switch,
}


def _names() -> str:
    return "one of " + ", ".join(f"`{name}`" for name in _PARSERS)
