from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web import sse

Parse = Callable[[bytes], list[Any]]


@given(
    st.text(),
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=20),
)
def test_what_is_framed_is_what_a_client_reads(parse: Parse, data: str, cursor: str) -> None:
    """A body comes out as it went in, line ends aside, which the format cannot tell apart."""
    [event] = parse(sse.event(data.encode(), name="gap", cursor=cursor))

    assert event.name == "gap"
    assert event.cursor == cursor
    assert event.data == data.replace("\r\n", "\n").replace("\r", "\n")


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text()), max_size=20))
def test_every_record_arrives_with_its_cursor(
    parse: Parse, rows: list[dict[str, int | str]]
) -> None:
    """Framing records changes neither their order, their content nor their number."""
    records = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    cursors = [f"c{number}" for number in range(len(rows))]

    events = parse(b"".join(sse.record_events(records, cursors)))

    assert [json.loads(event.data) for event in events] == rows
    assert [event.cursor for event in events] == cursors


def test_a_carriage_return_in_a_record_does_not_tear_it(parse: Parse) -> None:
    """JSON allows a carriage return between tokens; to a client it is still one event."""
    [event] = parse(b"".join(sse.record_events([b'{"step":\r1}\r'], ["c"])))

    assert json.loads(event.data) == {"step": 1}


@pytest.mark.parametrize("forged", ["a\ndata: {}", "a\rid: 1", "a\0"])
def test_a_name_or_cursor_cannot_forge_a_field(forged: str) -> None:
    """A line break in a field is refused, not sent."""
    with pytest.raises(ValueError, match="without line breaks"):
        sse.event(b"{}", cursor=forged)


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(1, 64))
def test_chunks_hold_whole_events(events: list[bytes], limit_bytes: int) -> None:
    """Chunks keep every byte in order, and pass the limit only for an event that does so alone."""
    chunks = list(sse.in_chunks(events, limit_bytes=limit_bytes))

    assert b"".join(chunks) == b"".join(events)
    assert all(len(chunk) <= limit_bytes or chunk in events for chunk in chunks)


def test_comments_and_retry_are_no_events(parse: Parse) -> None:
    """What opens a stream is invisible to a client's event handlers."""
    assert parse(sse.retry(1000) + sse.comment("two\nlines")) == []
