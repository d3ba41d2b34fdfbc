"""Which stretches of a file hold the records of which step, found without reading the records.

Every append ends with a trailer that says its size and its step, so going from trailer to trailer,
backwards, costs one small read each. What no trailer covers is taken to be in order of step, and
its steps are found by bisection.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from aegir_stream import codec
from aegir_stream.appends import last_control_line
from aegir_stream.cursor import GUARD_BYTES, guard_of_end
from aegir_stream.errors import MalformedEventError
from aegir_stream.events import Batch, Open
from aegir_stream.inventory import Content, Line
from aegir_stream.tail import end_of_last_line

__all__ = ["FileIndex", "Stretch", "first_step"]

_LOOK_BYTES = (4096, 256 << 10)
"""How much is read to find a trailer: enough for nearly every one, then for any."""

_RECORD_BYTES = 16 << 10
_NEWLINE = b"\n"


class Stretch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Data lines that stand together.

    Attributes:
        start: offset of the first.
        end: offset behind the last.
        attempt: attempt that wrote them.
        step: their step; `None` where no trailer says it.
    """

    start: int
    end: int
    attempt: int = 1
    step: int | None = None


class FileIndex:
    """The stretches of one file, which may grow.

    Args:
        kind: type of the file's data events.

    Attributes:
        openings: its `Open` lines, in order.
    """

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self.openings: list[Open] = []
        self._stretches: list[Stretch] = []
        self._behind: list[Stretch] = []
        self._done = 0
        self._guard = 0

    def look(self, content: Content) -> None:
        """Take in what was appended since the last look; begin anew if it is another file.

        Raises:
            OSError: the file cannot be read.
        """
        if self._guard != _guard(content, self._done):
            self._begin()
        self._content = content
        end = end_of_last_line(content.read, content.size)
        self._behind = []
        found = list(self._found(content, end))[::-1]
        done = max((at for at, one in found if not _is_open_ended(one)), default=self._done)
        for at, one in found:
            if isinstance(one, Open):
                self.openings.append(one)
            elif isinstance(one, Stretch):
                self._take(one, behind=at > done)
        self._done, self._guard = done, _guard(content, done)

    def stretches(self) -> Iterator[Stretch]:
        """Yield the stretches in order."""
        yield from self._stretches
        yield from self._behind

    def steps(self, stretch: Stretch) -> Iterator[int]:
        """Yield the steps of a stretch, in ascending order.

        Raises:
            OSError: the file cannot be read.
        """
        if stretch.step is not None:
            yield stretch.step
            return
        at = stretch.start
        while (found := _first(self._content, self._kind, at, stretch.end)) is not None:
            yield found[1]
            at = self._bisect(found[1] + 1, found[0], stretch.end)

    def lines(self, stretch: Stretch, step: int) -> Iterator[bytes]:
        """Yield the data lines of a step in a stretch, piece by piece, without their newlines.

        Raises:
            OSError: the file cannot be read.
        """
        if stretch.step not in {None, step}:
            return
        start = stretch.start
        if stretch.step is None:
            start = self._bisect(step, stretch.start, stretch.end)
        for line in self._content.lines(start, stretch.end):
            if line.data is None or not line.finished or codec.is_control(line.data):
                continue
            at = step if stretch.step is not None else _step_of(line.data, self._kind)
            if at == step:
                yield line.data
            elif at is not None and at > step:
                return

    # -- the walk ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.openings = []
        self._stretches, self._behind = [], []
        self._done = self._guard = 0

    def _found(self, content: Content, at: int) -> Iterator[tuple[int, Stretch | Open | None]]:
        """Yield the end of what stands behind the last look, and what it is, the last first."""
        if at > self._done and not codec.is_control(content.read(0, len(codec.CONTROL_PREFIX))):
            yield at, Stretch(start=self._done, end=at)
            return
        while at > self._done:
            begin, line = _last_line(content, at)
            if not codec.is_control(line):
                begin = max(self._done, min(at - 1, last_control_line(content.read, at)))
                yield at, Stretch(start=begin, end=at)
                at = begin
                continue
            control = codec.decode_control(line)
            yield at, control if isinstance(control, Open) else None
            at = begin
            if isinstance(control, Batch) and self._is_whole(content, control, begin):
                at = begin - control.bytes
                # Between a trailer's stretch and the trailer stands nothing.
                stretch = Stretch(start=at, end=begin, attempt=control.attempt, step=control.step)
                yield begin, stretch

    def _is_whole(self, content: Content, batch: Batch, begin: int) -> bool:
        """Tell whether an append of that size may stand there, as far as a look can tell."""
        start = begin - batch.bytes
        if batch.bytes <= 0 or start < self._done:
            return False
        return start == 0 or content.read(start - 1, 1) == _NEWLINE

    def _take(self, stretch: Stretch, *, behind: bool) -> None:
        if stretch.step is None and self.openings:
            attempt = self.openings[-1].attempt
            stretch = msgspec.structs.replace(stretch, attempt=attempt)
        (self._behind if behind else self._stretches).append(stretch)

    # -- where nothing says the step ---------------------------------------------------------------

    def _bisect(self, step: int, start: int, end: int) -> int:
        """Return where the first line of a step or a later one begins; `end` if none does."""
        low, high = start, end
        while low < high:
            middle = (low + high) // 2
            found = _first(self._content, self._kind, middle, end)
            if found is None or found[1] >= step:
                high = middle
            else:
                low = found[0] + 1
        found = _first(self._content, self._kind, low, end)
        return found[0] if found else end


def first_step(content: Content, kind: type) -> int | None:
    """Return the step of the first record of a file; `None` if it has none.

    Raises:
        OSError: the file cannot be read.
    """
    found = _first(content, kind, 0, content.size)
    return found[1] if found else None


def _first(content: Content, kind: type, at: int, end: int) -> tuple[int, int] | None:
    """Return the first record that begins at an offset or behind it: where, and of which step."""
    # Most lines are short: a small look is mostly enough.
    for until in (min(end, at + _RECORD_BYTES), end):
        lines = content.lines(max(0, at - 1), until)
        if at:
            # The byte before tells whether a line begins at the offset.
            next(lines, None)
        if found := next(filter(None, (_place(line, kind) for line in lines)), None):
            return found
    return None


def _place(line: Line, kind: type) -> tuple[int, int] | None:
    if line.data is None or not line.finished or codec.is_control(line.data):
        return None
    step = _step_of(line.data, kind)
    return None if step is None else (line.offset, step)


def _step_of(line: bytes, kind: type) -> int | None:
    try:
        return codec.head(line, kind).step
    except MalformedEventError:
        return None


def _last_line(content: Content, end: int) -> tuple[int, bytes]:
    """Return the line that ends at an offset, and where it begins; of a long one its end."""
    start, data = end, b""
    for size in _LOOK_BYTES:
        start = max(0, end - size)
        data = content.read(start, end - start)
        begin = data.rfind(_NEWLINE, 0, len(data) - 1) + 1
        if begin or not start:
            return start + begin, data[begin:-1]
    return start, b""


def _is_open_ended(found: Stretch | Open | None) -> bool:
    """Tell whether what was found may still get the trailer that ends it."""
    return isinstance(found, Stretch) and found.step is None


def _guard(content: Content, done: int) -> int:
    start = max(0, done - GUARD_BYTES)
    return guard_of_end(content.read(start, done - start)) if done else 0
