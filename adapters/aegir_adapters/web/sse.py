"""Server-sent events as bytes. Pure: no clock, no connection.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = ["CHUNK_BYTES", "comment", "event", "in_chunks", "place", "record_events", "retry"]

CHUNK_BYTES = 256 * 1024
"""Most bytes handed to the server at once; larger sends were no faster (benchmarked)."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_UNSAFE_IN_FIELD = re.compile(r"[\0\r\n]")


def event(data: bytes, *, name: str | None = None, cursor: str | None = None) -> bytes:
    """Return one event; `data` may hold several lines.

    Args:
        data: body, UTF-8.
        name: event type; absent for the default, which browsers deliver as `message`.
        cursor: what the client sends back as `Last-Event-ID`.

    Raises:
        ValueError: `name` or `cursor` holds a line break or a NUL, which would forge a field.
    """
    lines = []
    if name is not None:
        lines.append(b"event: " + _field(name))
    if cursor is not None:
        lines.append(b"id: " + _field(cursor))
    lines.extend(b"data: " + line for line in _LINE_END.split(data))
    return b"\n".join(lines) + b"\n\n"


def record_events(records: Iterable[bytes], cursors: Iterable[str]) -> list[bytes]:
    """Return one default event per record, with its cursor as the id.

    The bytes of a record are passed on as they are. A carriage return, which JSON allows as white
    space, would end the line, so such a record takes the careful way.
    """
    return [
        event(record, cursor=cursor)
        if b"\r" in record
        else b"id: %b\ndata: %b\n\n" % (cursor.encode(), record)
        for record, cursor in zip(records, cursors, strict=True)
    ]


def place(cursor: str) -> bytes:
    """Return what moves a client's `Last-Event-ID` on without an event."""
    return b"id: " + _field(cursor) + b"\n\n"


def comment(text: str = "") -> bytes:
    """Return a comment, which clients ignore and proxies see as traffic."""
    return b"".join(b": " + line + b"\n" for line in _LINE_END.split(text.encode())) + b"\n"


def retry(milliseconds: int) -> bytes:
    """Return how long a client should wait before it connects again."""
    return b"retry: %d\n\n" % milliseconds


def in_chunks(events: Iterable[bytes], *, limit_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Join whole events into chunks of at most `limit_bytes`; a larger event stands alone."""
    pending: list[bytes] = []
    size = 0
    for one in events:
        if pending and size + len(one) > limit_bytes:
            yield b"".join(pending)
            pending, size = [], 0
        pending.append(one)
        size += len(one)
    if pending:
        yield b"".join(pending)


def _field(value: str) -> bytes:
    if _UNSAFE_IN_FIELD.search(value):
        raise ValueError(f"Expected a field without line breaks and NUL, got {value!r}")
    return value.encode()
