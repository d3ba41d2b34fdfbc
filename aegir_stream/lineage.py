"""Which segments a lane has, where they are, and which of them survive.

A resume rewinds: segments that a later attempt did not continue stay on disk but are not part of
the run's history. Each segment's `Open` line names the one it continues, so the surviving lineage
is the chain of those names from the newest segment back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from aegir_stream import codec
from aegir_stream.events import Open
from aegir_stream.layout import STREAMS, UNSYNCED, CheckpointFiles, RunDirectory

__all__ = ["HEAD_BYTES", "Lineage", "Place", "read_header", "survey"]

HEAD_BYTES = 4096
"""How much of a file is read for its first line."""

Inode = tuple[int, int]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a segment lies.

    A closed segment stays what it is; the live path may name another segment at any moment, so what
    was seen there is kept.

    Attributes:
        segment: its number.
        path: the file.
        source: `live`, `snapshot:checkpoint-N` or `history:NNNNN`.
        growing: whether its writer may still append.
        opening: first line of a growing file, newline included, or as much of it as identifies
            the file; empty while it is unfinished.
        inode: (device, inode) of a growing file.
        continued: whether it was left for the next one with no checkpoint between them.
    """

    segment: int
    path: Path
    source: str
    growing: bool = False
    opening: bytes = b""
    inode: Inode | None = None
    continued: bool = False

    @property
    def sealed(self) -> bool:
        """Whether a checkpoint closed it."""
        return self.source.startswith("snapshot:")

    def header(self, run: RunDirectory) -> Open | None:
        """Return the segment's `Open` line; `None` if it has none."""
        return codec.decode_opening(self.opening) if self.growing else read_header(run, self.path)


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
            at = self._before(at, run)
        return chain[::-1]

    def since_checkpoint(self, run: RunDirectory) -> list[int]:
        """Return the numbers of the segments that follow the last checkpoint, oldest first.

        That is the newest one, and those before it that were left because a sync had failed.
        """
        chain: list[int] = []
        at = self.newest
        while at is not None and (not chain or (at in self.places and self.places[at].continued)):
            chain.append(at)
            at = self._before(at, run)
        return chain[::-1]

    def _before(self, at: int, run: RunDirectory) -> int | None:
        """Return the number of the segment that one continues."""
        header = self.places[at].header(run)
        before = max((n for n in self.places if n < at), default=None)
        named = header.previous if header else before
        # A damaged header must not lead in a circle.
        return named if named is not None and named < at else None


def survey(run: RunDirectory, *, stream: str, lane: str) -> Lineage:
    """Look up the segments of a lane: closed ones, and the live tail.

    A stream that is not sealed is one growing segment.

    Raises:
        OSError: a directory or the live tail cannot be read.
    """
    # The live tail first: what a checkpoint moves away meanwhile is then found among the closed.
    live = _look(run, run.live(stream, lane))
    if not STREAMS[stream].sealed:
        return Lineage({1: live} if live else {})
    places = _closed(run, lane)
    if live:
        header = live.header(run)
        number = header.segment if header else max(places, default=0) + 1
        # Between a seal and the fresh segment the live path is one more name of the sealed one.
        places.setdefault(number, msgspec.structs.replace(live, segment=number))
    return Lineage(places)


def read_header(run: RunDirectory, path: Path) -> Open | None:
    """Return the `Open` line of a file; `None` if it has none or cannot be read now."""
    try:
        return codec.decode_opening(run.disk.read(path, offset=0, size=HEAD_BYTES).data)
    except OSError:
        return None


def _look(run: RunDirectory, live: Path) -> Place | None:
    try:
        reading = run.disk.read(live, offset=0, size=HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    line, newline, _ = reading.data.partition(b"\n")
    return Place(
        segment=1,
        path=live,
        source="live",
        growing=True,
        opening=line + newline if newline or len(line) == HEAD_BYTES else b"",
        inode=reading.inode,
    )


def _closed(run: RunDirectory, lane: str) -> dict[int, Place]:
    """Return the segments under `history/`, and those that only a checkpoint still holds.

    No other checkpoint is looked into: on a network file system a file that is open at the moment
    it is removed, however shortly, stays behind and keeps its directory from being removed.
    """
    # The snapshots first: one that appears meanwhile stood under `history/` before.
    snapshots = _snapshots(run, lane)
    files = run.history(lane)
    history = {
        file.segment: Place(
            segment=file.segment,
            path=file.path,
            source=_source(file.label, file.segment),
            continued=file.label == UNSYNCED,
        )
        for file in files
    }
    kept = {file.label for file in files}
    others = (checkpoint for checkpoint in snapshots if checkpoint.name not in kept)
    return _opened(run, lane, others, numbered_by_step=not files) | history


def _snapshots(run: RunDirectory, lane: str) -> list[CheckpointFiles]:
    """Return the checkpoints that hold a segment of a lane."""
    return [c for c in run.checkpoints() if run.disk.exists(run.snapshot(c.name, lane))]


def _opened(
    run: RunDirectory, lane: str, checkpoints: Iterable[CheckpointFiles], *, numbered_by_step: bool
) -> dict[int, Place]:
    """Look into the snapshots of checkpoints."""
    places = {}
    for checkpoint in checkpoints:
        path = run.snapshot(checkpoint.name, lane)
        header = read_header(run, path)
        if header or numbered_by_step:
            number = header.segment if header else checkpoint.step
            source = f"snapshot:{checkpoint.name}"
            places[number] = Place(segment=number, path=path, source=source)
    return places


def _source(label: str, segment: int) -> str:
    sealed = re.fullmatch(r"checkpoint-\d+", label)
    return f"snapshot:{label}" if sealed else f"history:{segment:05d}"
