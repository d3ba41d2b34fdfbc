"""Follow one file at the level `committed`: no line before the checksum behind it was verified.

A scan runs ahead and says which appends agree with their trailers; only these are read. What it
finds damaged is passed over and told. So an append of any size costs no memory, and what is read is
read as at the level `live`.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from aegir_stream import codec
from aegir_stream.appends import Scan, Span, last_control_line
from aegir_stream.disk import Disk
from aegir_stream.errors import MalformedEventError
from aegir_stream.tail import SHORTER, Look, Tail, answer

__all__ = ["CommittedTail", "Level", "has_trailers"]

Level: TypeAlias = Literal["live", "committed"]
"""When a record counts: as soon as its newline is there, or only when the trailer behind its append
is there and agrees with it."""

_AHEAD_BYTES = 256 << 10


class CommittedTail(Tail):
    """Reads the appends of a file that agree with their checksums.

    A file whose first line is a record has no trailers; its lines count as at the level `live`.

    Args:
        disk: the file system.
        path: the file; may be set to another name of the same file later.
        kind: type of the stream's data events.
        growing: whether its writer may still append, so that what lacks a trailer may get one; may
            be set later.
        offset: where to start, behind a line.
        identity: the file's first line, newline included; empty to take what stands there.
        inode: (device, inode) of the file; guards its identity while that is empty.
    """

    def __init__(
        self,
        disk: Disk,
        path: Path,
        *,
        kind: type,
        growing: bool,
        offset: int = 0,
        identity: bytes = b"",
        inode: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(disk, path, offset=offset, identity=identity, inode=inode)
        self.growing = growing
        self._kind = kind
        self._has_trailers: bool | None = None
        self._size = 0
        self._restart()

    def look(self, *, until: int | None = None) -> Look:
        """Read the next complete lines that are verified; what is damaged comes as `skipped`."""
        if self._has_trailers is None:
            first = super().look(until=self.offset)
            if not self.identity or first.outcome != "end":
                return first
            self._has_trailers = has_trailers(self.identity, self._kind)
        if not self._has_trailers:
            return super().look(until=until)
        return answer(lambda: self._look_behind_scan(until))

    def move_to_end(self, *, within: int | None = None) -> None:
        """Go behind the last complete line that is there, or that the first `within` bytes hold.

        Raises:
            OSError: the file cannot be read.
        """
        super().move_to_end(within=within)
        self._restart()

    def _look_behind_scan(self, until: int | None) -> Look:
        try:
            self._verify()
            passed = self._pass_damage(until)
        except _NotAsItWas as changed:
            return changed.look
        return passed or self._look_at_verified(until)

    # -- ahead of the reader -----------------------------------------------------------------------

    def _restart(self) -> None:
        self._scan: Scan | None = None
        self._damaged: deque[Span] = deque()
        self._verified = self.offset

    def _verify(self) -> None:
        """Let the scan go on until there is enough to read, or nothing more to verify."""
        if self._scan is None:
            self._scan = Scan(last_control_line(self._read_on, self.offset))
        while self._verified < self.offset + _AHEAD_BYTES:
            spans = self._scan.read_on(self._read_on)
            if spans is None:
                self._verify_end(self._scan)
                return
            for span in spans:
                self._admit(span)

    def _verify_end(self, scan: Scan) -> None:
        """Nothing whole is left: in a file that grows no more, what is left is damaged."""
        rest = None if self.growing else scan.rest(self._size)
        if rest:
            self._admit(rest)
            self._scan = Scan(rest.end)

    def _admit(self, span: Span) -> None:
        if span.end <= self.offset:
            return
        if span.reason:
            self._damaged.append(span)
        self._verified = span.end

    def _read_on(self, offset: int, size: int) -> bytes:
        reading = self._reading(offset, size)
        self._size = reading.size
        if not self._is_the_same(reading):
            raise _NotAsItWas(Look(outcome="replaced"))
        if reading.size < self.offset:
            raise _NotAsItWas(Look(outcome="truncated", size=reading.size))
        if reading.size < offset:
            # Nothing of what is gone was delivered.
            self._restart()
            raise _NotAsItWas(Look(outcome="failed", reason=SHORTER))
        return reading.data

    # -- behind the scan ---------------------------------------------------------------------------

    def _pass_damage(self, until: int | None) -> Look | None:
        """Pass over a damaged range that begins here; `None` if none does."""
        if not self._damaged or self._damaged[0].start > self.offset:
            return None
        span = self._damaged[0]
        end = span.end if until is None else min(span.end, until)
        if end <= self.offset:
            return None
        look = self._skip(end - self.offset, span.reason)
        if look.skipped and end == span.end:
            self._damaged.popleft()
        return look

    def _look_at_verified(self, until: int | None) -> Look:
        limit = self._damaged[0].start if self._damaged else self._verified
        limit = limit if until is None else min(limit, until)
        if limit <= self.offset:
            unfinished = self._size - self._scan.whole if self._scan else 0
            return Look(outcome="end", unfinished=unfinished)
        before = self.offset, self._searched
        look = super().look(until=limit)
        if look.outcome != "end":
            return look
        if before == (self.offset, self._searched):
            return Look(outcome="failed", reason=SHORTER)
        return msgspec.structs.replace(look, outcome="lines")


def has_trailers(first_line: bytes, kind: type) -> bool:
    """Tell whether a file's appends carry checksums, by its first line, newline included.

    A file without control lines begins with a record. One whose first line is neither has lost its
    `Open` line to damage. An incomplete line is taken for a long record.
    """
    if codec.is_control(first_line):
        return True
    try:
        codec.head(first_line, kind)
    except MalformedEventError:
        return first_line.endswith(b"\n")
    return False


class _NotAsItWas(Exception):  # noqa: N818 - a look's answer; never leaves this module
    """The file cannot be scanned further; `look` says why."""

    def __init__(self, look: Look) -> None:
        super().__init__(look.outcome)
        self.look = look
