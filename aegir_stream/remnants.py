"""What a killed writer leaves behind: lines without their trailer, and the one it was killed in.

The next writer ends that line with a newline and goes on behind it, so it stands in the middle of a
file, and nothing but its looks tells it from a damaged one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec

from aegir_stream import codec
from aegir_stream.appends import Span
from aegir_stream.errors import MalformedEventError
from aegir_stream.events import Close, Open
from aegir_stream.inventory import Content, Line, LogFile

__all__ = ["Remnant", "State", "is_left_by_a_kill", "remnants"]

State: TypeAlias = Literal["whole", "torn", "damaged"]


class Remnant(msgspec.Struct, frozen=True):
    """A line behind which no trailer stands, as a killed writer leaves it.

    Attributes:
        line: the line.
        state: `whole`: a record; `torn`: the beginning of a line; `damaged`: neither.
    """

    line: Line
    state: State


def is_left_by_a_kill(span: Span, file: LogFile) -> bool:
    """Tell whether lines lack their trailer because their writer was killed, or could not write."""
    match span.control:
        case Open() | Close(status=("abandoned" | "unsynced")):
            return span.kind == "untrailed"
        case None:
            return span.kind == "untrailed" and not file.sealed
    return False


def remnants(file: LogFile, content: Content, *, start: int, end: int) -> Iterator[Remnant]:
    """Yield the lines between two offsets and what they are.

    Raises:
        OSError: the file cannot be read.
    """
    for line in content.lines(start, end):
        if line.data != b"":
            yield Remnant(line, _state(line, file.stream.kind))


def _state(line: Line, kind: type) -> State:
    if line.data is None:
        return "damaged"
    if line.finished and not codec.is_control(line.data):
        try:
            codec.head(line.data, kind)
        except MalformedEventError:
            pass
        else:
            return "whole"
    # What was cut short does not end as every line does.
    return "torn" if not line.finished or not line.data.endswith(b"}") else "damaged"
