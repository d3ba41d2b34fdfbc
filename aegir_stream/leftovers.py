"""What an earlier attempt left at a live path: kept under `history/`, once.

Not only crashes leave things there. A loss of power may bring an old name back, cut a file to
nothing, or leave NULs where its content was. And a trainer that is killed after it has saved a
checkpoint and before the log was sealed leaves what that checkpoint is resumed with.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from aegir_stream import codec
from aegir_stream.appends import Scan, Tally
from aegir_stream.disk import AppendHandle
from aegir_stream.durability import Medium
from aegir_stream.errors import MalformedEventError
from aegir_stream.events import Close, Control, Open, Seal
from aegir_stream.layout import ABANDONED, STREAMS, UNSYNCED, HistoryFile, RunDirectory
from aegir_stream.lineage import HEAD_BYTES, Lineage, Place, read_header, survey
from aegir_stream.opening import step_of
from aegir_stream.tail import Tail

__all__ = ["Leftover", "closed_segments"]

_NO_CHECKPOINT = {ABANDONED, UNSYNCED}


class Leftover:
    """The file at the live path of a lane, held open, every line of it ended.

    Args:
        run: the run directory.
        left: the file.
        stream: a sealed stream.
        lane: the lane.
        medium: what syncs.
    """

    def __init__(
        self, run: RunDirectory, left: AppendHandle, *, stream: str, lane: str, medium: Medium
    ) -> None:
        self._run = run
        self._left = left
        self._stream = stream
        self._lane = lane
        self._medium = medium
        self._header = codec.decode_opening(left.read(0, HEAD_BYTES))
        self._checkpoint: str | None = None

    def is_kept(self) -> bool:
        """Tell whether it stands under `history/` as well.

        Raises:
            OSError: a file cannot be read.
        """
        return self._kept() is not None

    def leads_to(self, step: int) -> bool:
        """Tell whether it holds what the run had recorded when a checkpoint was saved at a step.

        So it does if it is the newest segment, nothing was sealed at that step, and neither it nor
        what it continues reaches further. A writer that owes a seal writes nothing else, so no
        later step is there unless nobody asked for a seal.

        Raises:
            OSError: a file cannot be read.
        """
        lineage = survey(self._run, stream=self._stream, lane=self._lane)
        if any(step_of(place.source) == step for place in lineage.places.values()):
            return False
        if not self._is_newest(lineage) or isinstance(self._ending(), Seal):
            return False
        chain = (lineage.places[number] for number in lineage.surviving(self._run))
        since = (lineage.places[number] for number in lineage.since_checkpoint(self._run))
        reached = [*(step_of(place.source) for place in chain if place.sealed)]
        reached += map(self._last_step, since)
        return all(each is None or each <= step for each in reached)

    def seal(self, checkpoint: str, *, opening: Open) -> None:
        """End it as its writer should have: with the seal of the checkpoint that was saved.

        The seal counts the records that are whole by their checksums.

        Args:
            checkpoint: name of the checkpoint.
            opening: tells who seals it; a file without control lines gets neither.
        """
        self._checkpoint = checkpoint
        if self._header is None:
            return
        scan = Scan(total=(total := Tally()))
        while scan.read_on(self._left.read) is not None:
            pass
        seal = Seal(
            checkpoint=checkpoint,
            step=step_of(checkpoint) or 0,
            segment=self._header.segment,
            records=total.records,
            bytes=total.size,
            crc32=total.crc32,
        )
        place = {"segment": seal.segment, "previous": self._header.previous}
        for event in (replace(opening, **place), seal):
            self._write(codec.encode(event))

    def set_aside(self, *, control_lines: bool) -> None:
        """Give the file its places under `history/` and in the checkpoint that sealed it.

        Args:
            control_lines: whether a file that ends without a mark gets one.
        """
        ending = self._ending()
        label = self._checkpoint or (ending.checkpoint if isinstance(ending, Seal) else ABANDONED)
        if label == ABANDONED and not isinstance(ending, Close) and control_lines:
            self._write(codec.encode(Close(status=ABANDONED)))
        self._medium.sync(self._left, stream=self._stream, path=self._left.path)
        self._run.disk.make_directory(self._run.history_path)
        kept = self._kept()
        if kept and (label == ABANDONED or kept.label not in _NO_CHECKPOINT):
            path, label = kept.path, kept.label
        else:
            path = self._keep(label, kept)
        if label not in _NO_CHECKPOINT and self._run.disk.exists(self._run.root / label):
            self._share(path, self._run.snapshot(label, self._lane))

    def _keep(self, label: str, kept: HistoryFile | None) -> Path:
        """Put it under `history/`, instead of where it is kept as no checkpoint's."""
        path = self._run.closed(kept.segment if kept else self._number(), label, self._lane)
        self._share(self._left.path, path)
        if kept:
            self._run.disk.remove(kept.path)
        return path

    def _ending(self) -> Control | None:
        return self._run.ending_of(self._left.path)

    def _write(self, line: bytes) -> None:
        written = 0
        while written < len(line):
            written += self._left.write(line[written:])

    def _share(self, source: Path, name: Path) -> None:
        self._run.disk.share(source, name)
        self._medium.renamed(name)

    def _number(self) -> int:
        """Return the number to keep it under: its own, unless another segment bears that."""
        closed = closed_segments(self._run, stream=self._stream, lane=self._lane)
        if self._header and self._is(closed.get(self._header.segment)):
            return self._header.segment
        return max(closed, default=0) + 1

    def _is(self, place: Place | None) -> bool:
        return place is None or place.header(self._run) == self._header

    def _kept(self) -> HistoryFile | None:
        """Return the closed segment that this file is, or of which it is an older copy.

        A crash came between keeping it and replacing it, or the live path has an old name back.
        """
        inode = self._left.inode()
        history = self._run.history(self._lane)
        for file in reversed(history):
            if self._header is None or file.segment == self._header.segment or file is history[-1]:
                there = self._run.disk.read(file.path, offset=0, size=0).inode
                if there == inode or self._is_older_copy_of(file):
                    return file
        return None

    def _is_newest(self, lineage: Lineage) -> bool:
        """Tell whether it is the newest segment, in its own place or kept as no checkpoint's."""
        kept = self._kept()
        newest = lineage.places[max(lineage.places)]
        if kept is None:
            return newest.growing
        return kept.label in _NO_CHECKPOINT and kept.segment == newest.segment

    def _last_step(self, place: Place) -> int | None:
        return max(_steps(self._run, place.path, STREAMS[self._stream].kind), default=None)

    def _is_older_copy_of(self, file: HistoryFile) -> bool:
        """Tell whether both begin alike, as no two segments do."""
        return self._header is not None and read_header(self._run, file.path) == self._header


def closed_segments(run: RunDirectory, *, stream: str, lane: str) -> dict[int, Place]:
    """Return the segments of a lane that nobody appends to, by number."""
    places = survey(run, stream=stream, lane=lane).places
    return {number: place for number, place in places.items() if not place.growing}


def _steps(run: RunDirectory, path: Path, kind: type) -> Iterator[int]:
    """Yield the steps of the records in a file; what is no record is passed over."""
    tail, more = Tail(run.disk, path), True
    while more:
        look = tail.look()
        for line in look.lines:
            if line and not codec.is_control(line):
                with contextlib.suppress(MalformedEventError):
                    yield codec.head(line, kind).step
        more = look.outcome == "lines"
    if look.outcome != "end":
        raise OSError(errno.EIO, look.reason or look.outcome, str(path))
