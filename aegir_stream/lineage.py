"""Which segments a lane has, where they are, and which of them survive.

A resume rewinds: segments that a later attempt did not continue stay on disk but are not part of
the run's history. Each segment's `Open` line names the one it continues, so the surviving lineage
is the chain of those names from the newest segment back.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from aegir_stream import codec
from aegir_stream.events import Open
from aegir_stream.layout import STREAMS, RunDirectory

__all__ = ["Lineage", "Place", "read_header", "survey"]

_HEAD_BYTES = 4096


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a segment lies.

    Attributes:
        segment: its number.
        path: the file.
        source: `live`, `snapshot:checkpoint-N` or `history:NNNNN`.
        growing: whether its writer may still append.
    """

    segment: int
    path: Path
    source: str
    growing: bool = False


class Lineage(msgspec.Struct, frozen=True):
    """All segments of a lane by number, as they were found at one moment."""

    places: dict[int, Place]

    @property
    def newest(self) -> int | None:
        """Number of the newest segment, `None` if there is none."""
        return max(self.places, default=None)

    def all(self) -> list[int]:
        """Return every segment number, oldest first."""
        return sorted(self.places)

    def surviving(self, run: RunDirectory) -> list[int]:
        """Return the numbers of the chain that leads to the newest segment, oldest first.

        Segments without a header continue the one before them.
        """
        chain: list[int] = []
        at = self.newest
        while at is not None and at in self.places:
            chain.append(at)
            header = read_header(run, self.places[at].path)
            before = max((n for n in self.places if n < at), default=None)
            at = header.previous if header else before
        return chain[::-1]


def survey(run: RunDirectory, *, stream: str, lane: str) -> Lineage:
    """Look up the segments of a lane: closed ones, and the live tail.

    A stream that is not sealed is one growing segment. Where `history/` is missing, the
    checkpoints' snapshots stand in for it.
    """
    live = run.live(stream, lane)
    if not STREAMS[stream].sealed:
        feed = Place(segment=1, path=live, source="live", growing=True)
        return Lineage({1: feed} if run.disk.exists(live) else {})
    places = {
        file.segment: Place(
            segment=file.segment, path=file.path, source=_source(file.label, file.segment)
        )
        for file in run.history(lane)
    } or _snapshots(run, lane)
    if run.disk.exists(live):
        header = read_header(run, live)
        number = header.segment if header else max(places, default=0) + 1
        # Between a seal and the fresh segment the live path is one more name of the sealed one.
        places.setdefault(number, Place(segment=number, path=live, source="live", growing=True))
    return Lineage(places)


def read_header(run: RunDirectory, path: Path) -> Open | None:
    """Return the `Open` line of a segment; `None` if it has none or cannot be read now."""
    try:
        head = run.disk.read(path, offset=0, size=_HEAD_BYTES).data
    except OSError:
        return None
    return codec.decode_opening(head)


def _snapshots(run: RunDirectory, lane: str) -> dict[int, Place]:
    places = {}
    for checkpoint in run.checkpoints():
        path = run.snapshot(checkpoint.name, lane)
        if run.disk.exists(path):
            header = read_header(run, path)
            number = header.segment if header else checkpoint.step
            source = f"snapshot:{checkpoint.name}"
            places[number] = Place(segment=number, path=path, source=source)
    return places


def _source(label: str, segment: int) -> str:
    sealed = re.fullmatch(r"checkpoint-\d+", label)
    return f"snapshot:{label}" if sealed else f"history:{segment:05d}"
