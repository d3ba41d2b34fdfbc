"""How long a reader waits for the end of an unfinished line before it says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from aegir_stream.events import Stalled
from aegir_stream.typing import Clock

__all__ = ["Patience", "Unfinished"]


class Unfinished(msgspec.Struct, frozen=True):
    """A last line without its newline.

    Attributes:
        path: file that it ends.
        offset: where it begins.
        length: bytes of it that are there.
    """

    path: str
    offset: int
    length: int


class Patience:
    """Notices lines that stay unfinished. A line that has grown is waited for anew.

    Args:
        clock: what time is measured with.
        stall_s: how long a line may stay as it is.
    """

    def __init__(self, clock: Clock, *, stall_s: float) -> None:
        self._clock = clock
        self._stall_s = stall_s
        self._since: dict[Unfinished, float] = {}
        self._told: set[Unfinished] = set()

    def spent(self, lines: Iterable[Unfinished]) -> Iterator[Stalled]:
        """Yield once for each of the lines that are unfinished now and have been for too long."""
        now = self._clock.monotonic()
        self._since = {line: self._since.get(line, now) for line in lines}
        self._told &= self._since.keys()
        for line, since in self._since.items():
            if now - since >= self._stall_s and line not in self._told:
                self._told.add(line)
                yield Stalled(path=line.path, reason=self._reason(line))

    def _reason(self, line: Unfinished) -> str:
        return (
            f"the last line has been unfinished for {self._stall_s:g} s "
            f"({line.length} bytes): its writer may have died"
        )
