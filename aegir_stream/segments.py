"""The segments that one writer appends to: opened, recovered, sealed, set aside.

A *chain* is a lane of the SAE stream: a live tail that checkpoints seal, each segment naming the
one it continues.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import msgspec
from msgspec.structs import replace

from aegir_stream.attempts import attempt_of
from aegir_stream.disk import AppendHandle
from aegir_stream.durability import Medium
from aegir_stream.errors import OptionError
from aegir_stream.events import Seal
from aegir_stream.layout import UNSYNCED, RunDirectory, lane_name
from aegir_stream.leftovers import Leftover, closed_segments
from aegir_stream.lineage import Place, survey
from aegir_stream.opening import (
    Authorship,
    begin,
    closed_on_error,
    end_torn_line,
    hold,
    step_of,
)
from aegir_stream.typing import Sealed
from aegir_stream.writer import SegmentWriter

__all__ = ["SegmentChain"]


class SegmentChain:
    """The live tail of one lane, and the segments that it leaves behind.

    Opening sets aside what an earlier attempt left unsealed. A lane that another live process
    holds is left alone: this writer takes the next lane name of its rank. After a failed sync the
    segment is set aside too, and the next one continues it.

    Args:
        run: the run directory.
        author: who writes.
        stream: a sealed stream.
        medium: what syncs; nothing does if absent.
    """

    def __init__(
        self,
        run: RunDirectory,
        author: Authorship,
        *,
        stream: str = "sae_features",
        medium: Medium | None = None,
    ) -> None:
        self._run = run
        self._author = author
        self._stream = stream
        self._medium = medium or Medium(run.disk)
        self._owed: tuple[str, int] | None = None
        self._last: Sealed | None = None
        self._left_records = 0
        self.lane = ""
        self.attempt = 1
        self.segment = 0
        for number in itertools.count(1):
            self.lane = lane_name(author.rank, writer=number)
            if self._open():
                break
        # Nothing else says what this attempt rewound.
        self.sync()
        self._medium.sync_names()

    @property
    def path(self) -> Path:
        """Path of the live tail."""
        return self._run.live(self._stream, self.lane)

    @property
    def writer(self) -> SegmentWriter:
        """The writer of the live tail.

        Raises:
            OSError: what a failed seal or sync left to be done could still not be done.
        """
        self._finish()
        return self._writer

    def seal(self, *, checkpoint: str, step: int) -> Sealed:
        """Close the segment as a checkpoint's snapshot and go on with a fresh one.

        The sealed segment appears as `checkpoint-N/sae_features.jsonl` and under `history/` before
        the live path moves on, so a reader finds every record at every moment. The checkpoint that
        was sealed last may be sealed again, which changes nothing; records written since then
        cannot join it and stay in the live tail for the next one. Where that is asked for, all of
        it is on the medium when this returns; what may not be is among the medium's failures.

        Raises:
            OptionError: the checkpoint is sealed, and records were written since.
            OSError: a step failed; it is done again before the next write.
        """
        since = self.writer.records + self._left_records
        if self._last and self._last.checkpoint == checkpoint:
            return _sealed_again(self._last, records_since=since)
        self._owed = checkpoint, step
        return self._seal(checkpoint, step)

    def sync(self) -> None:
        """Put what was written on the medium, if that was asked for; a failure is told later."""
        self._medium.sync(self._writer, stream=self._stream, path=self.path, segment=self.segment)

    def close(self, status: str) -> None:
        """Write the closing mark and release the file.

        Raises:
            OSError: the mark could not be written, or the last checkpoint's seal not be put in its
                places, which the next attempt does; the file is released all the same.
        """
        try:
            self.writer.end(status)
        finally:
            self.sync()
            self._writer.close(None)

    # -- opening -----------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Start a segment on the lane; `False` if another process writes there."""
        left = hold(self._run, stream=self._stream, lane=self.lane)
        if left is None:
            return False
        with closed_on_error(left):
            self.attempt = attempt_of(self._run, self._author, stream=self._stream, lane=self.lane)
            torn = end_torn_line(left)
            leftover = Leftover(
                self._run, left, stream=self._stream, lane=self.lane, medium=self._medium
            )
            if not left.size() and not leftover.is_kept():
                self.segment = self._last_number() + 1
                self._writer = self._begin(left, self.segment, self._continued())
                return True
            self._seal_what_was_saved(leftover, torn)
            leftover.set_aside(control_lines=self._author.control_lines)
            number = self._last_number() + 1
            self._writer = self._start(
                number, previous=self._continued(), recovered_torn_bytes=torn
            )
        # Whatever closing it says, the segment is begun and must be written on.
        with contextlib.suppress(OSError):
            left.close()
        return True

    def _seal_what_was_saved(self, leftover: Leftover, torn: int) -> None:
        """Pay the seal that a writer owed that was killed between the checkpoint and the seal."""
        checkpoint, step = self._author.continues, self._author.continues_step
        if checkpoint is not None and step is not None and leftover.leads_to(step):
            opening = self._author.opening(
                stream=self._stream, lane=self.lane, attempt=self.attempt
            )
            leftover.seal(checkpoint, opening=replace(opening, recovered_torn_bytes=torn))

    def _last_number(self) -> int:
        return max(closed_segments(self._run, stream=self._stream, lane=self.lane), default=0)

    def _continued(self) -> int | None:
        """Return the segment sealed at the checkpoint that this attempt resumed from.

        Where that seal was never written, the last one before it on the chain is continued.
        """
        resumed_at = self._author.continues_step
        if resumed_at is None:
            return None
        lineage = survey(self._run, stream=self._stream, lane=self.lane)
        steps = {number: step_of(place.source) for number, place in lineage.places.items()}
        exact = [number for number, step in steps.items() if step == resumed_at]
        if exact:
            self._last = self._sealed_in(lineage.places[max(exact)])
            return max(exact)
        sealed = ((number, steps[number]) for number in reversed(lineage.surviving(self._run)))
        return next((n for n, step in sealed if step is not None and step < resumed_at), None)

    def _sealed_in(self, place: Place) -> Sealed | None:
        """Return the checkpoint that a segment was sealed as, so that it is not sealed again."""
        seal = self._run.seal_of(place.path)
        return _answer(seal) if seal and seal.checkpoint == self._author.continues else None

    # -- moving on ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Do what a failed seal or sync left to be done."""
        if self._owed:
            self._seal(*self._owed)
        if self._writer.doubtful:
            self._leave()

    def _seal(self, checkpoint: str, step: int) -> Sealed:
        """Write the seal, put the segment in its places, and only then owe nothing any more."""
        sealed = self._writer
        seal = sealed.seal(checkpoint=checkpoint, step=step, segment=self.segment)
        self.sync()
        self._publish(seal)
        self._owed = None
        self._last = _answer(seal)
        self._left_records = 0
        sealed.close(None)
        return self._last

    def _publish(self, seal: Seal) -> None:
        self._keep(seal.segment, seal.checkpoint)
        snapshot = self._run.snapshot(seal.checkpoint, self.lane)
        self._run.disk.make_directory(snapshot.parent)
        self._share(snapshot)
        self._writer = self._start(seal.segment + 1, previous=seal.segment)
        self._medium.sync_names()

    def _leave(self) -> None:
        """Go on in a fresh segment: nobody can tell what of this one is on the medium."""
        left = self._writer
        with contextlib.suppress(OSError):
            left.end(UNSYNCED)
        self._keep(self.segment, UNSYNCED)
        self._writer = self._start(self.segment + 1, previous=self.segment)
        self._writer.inherit(left)
        self._left_records += left.records
        left.close(None)
        self._medium.sync_names()

    def _keep(self, segment: int, label: str) -> None:
        self._run.disk.make_directory(self._run.history_path)
        self._share(self._run.closed(segment, label, self.lane))

    def _share(self, name: Path) -> None:
        """Give the segment that is written one more name.

        The path names the next one already where a network file system did the last rename and its
        answer was lost; this one has its names then.
        """
        if self._writer.stands_at(self.path, self._run.disk):
            self._run.disk.share(self.path, name)
            self._medium.renamed(name)

    def _start(
        self, segment: int, *, previous: int | None, recovered_torn_bytes: int = 0
    ) -> SegmentWriter:
        """Put a fresh segment in the place of the live tail, atomically."""
        temporary = self.path.with_name(f".{self.path.name}.{segment:05d}.tmp")
        self._run.disk.remove(temporary)
        handle = self._run.disk.append(temporary, exclusive=True)
        try:
            with closed_on_error(handle):
                handle.lock()
                writer = self._begin(handle, segment, previous, torn=recovered_torn_bytes)
                self._run.disk.replace(temporary, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                self._run.disk.remove(temporary)
            raise
        self.segment = segment
        return writer

    def _begin(
        self, handle: AppendHandle, segment: int, previous: int | None, *, torn: int = 0
    ) -> SegmentWriter:
        opening = replace(
            self._author.opening(stream=self._stream, lane=self.lane, attempt=self.attempt),
            segment=segment,
            previous=previous,
            recovered_torn_bytes=torn,
        )
        self._medium.renamed(self.path)
        return begin(self._author, handle=handle, opening=opening)


def _answer(seal: Seal) -> Sealed:
    return msgspec.convert(seal, Sealed, from_attributes=True)


def _sealed_again(last: Sealed, *, records_since: int) -> Sealed:
    if records_since:
        raise OptionError(
            f"`{last.checkpoint}` is sealed with {last.records} records, "
            f"and {records_since} were written since",
            hint="They stay in the live tail; seal them under the next checkpoint's name",
        )
    return last
