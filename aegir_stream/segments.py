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

from aegir_stream import codec
from aegir_stream.attempts import attempt_of
from aegir_stream.disk import AppendHandle
from aegir_stream.errors import OptionError
from aegir_stream.events import Close, Open, Seal
from aegir_stream.layout import HistoryFile, RunDirectory, lane_name
from aegir_stream.lineage import HEAD_BYTES, survey
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

_ABANDONED = "abandoned"


class SegmentChain:
    """The live tail of one lane, and the segments that it leaves behind.

    Opening sets aside what an earlier attempt left unsealed. A lane that another live process
    holds is left alone: this writer takes the next lane name of its rank.

    Args:
        run: the run directory.
        author: who writes.
        stream: a sealed stream.
    """

    def __init__(
        self, run: RunDirectory, author: Authorship, *, stream: str = "sae_features"
    ) -> None:
        self._run = run
        self._author = author
        self._stream = stream
        self._owed: tuple[str, int] | None = None
        self._last: Sealed | None = None
        self.lane = ""
        self.attempt = 1
        self.segment = 0
        for number in itertools.count(1):
            self.lane = lane_name(author.rank, writer=number)
            if self._open():
                break

    @property
    def path(self) -> Path:
        """Path of the live tail."""
        return self._run.live(self._stream, self.lane)

    @property
    def writer(self) -> SegmentWriter:
        """The writer of the live tail.

        Raises:
            OSError: the last checkpoint's seal could still not be written or put in its places.
        """
        self._finish_seal()
        return self._writer

    def seal(self, *, checkpoint: str, step: int) -> Sealed:
        """Close the segment as a checkpoint's snapshot and go on with a fresh one.

        The sealed segment appears as `checkpoint-N/sae_features.jsonl` and under `history/` before
        the live path moves on, so a reader finds every record at every moment. The checkpoint that
        was sealed last may be sealed again, which changes nothing; records written since then
        cannot join it and stay in the live tail for the next one.

        Raises:
            OptionError: the checkpoint is sealed, and records were written since.
            OSError: a step failed; it is done again before the next write.
        """
        since = self.writer.records
        if self._last and self._last.checkpoint == checkpoint:
            return _sealed_again(self._last, records_since=since)
        self._owed = checkpoint, step
        return self._seal(checkpoint, step)

    def close(self, status: str) -> None:
        """Write the closing mark and release the file.

        Raises:
            OSError: the mark could not be written, or the last checkpoint's seal not be put in its
                places, which the next attempt does; the file is released all the same.
        """
        try:
            self._finish_seal()
        except OSError:
            self._writer.close(None)
            raise
        self._writer.close(status)

    # -- opening -----------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Start a segment on the lane; `False` if another process writes there."""
        left = hold(self._run, stream=self._stream, lane=self.lane)
        if left is None:
            return False
        with closed_on_error(left):
            if not left.size():
                self._number_after(None)
                self._writer = self._begin(left, self._continued())
                return True
        with contextlib.closing(left):
            header, torn = self._set_aside(left)
            self._number_after(header)
            self._writer = self._start(self._continued(), recovered_torn_bytes=torn)
        return True

    def _number_after(self, header: Open | None) -> None:
        history = self._run.history(self.lane)
        last = max([header.segment if header else 0, *(file.segment for file in history)])
        self.segment = last + 1
        self.attempt = attempt_of(self._run, self._author, stream=self._stream, lane=self.lane)

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
            return max(exact)
        sealed = ((number, steps[number]) for number in reversed(lineage.surviving(self._run)))
        return next((n for n, step in sealed if step is not None and step < resumed_at), None)

    def _set_aside(self, left: AppendHandle) -> tuple[Open | None, int]:
        """Move what an earlier attempt left to `history/`; return its header and torn bytes."""
        torn = end_torn_line(left)
        header = codec.decode_opening(left.read(0, HEAD_BYTES))
        last = self._run.ending_of(self.path)
        if not isinstance(last, Seal | Close) and self._author.control_lines:
            left.write(codec.encode(Close(status=_ABANDONED)))
        label = last.checkpoint if isinstance(last, Seal) else _ABANDONED
        history = self._run.history(self.lane)
        if history and self._is_kept(left, history[-1]):
            label = history[-1].label
        else:
            number = header.segment if header else history[-1].segment + 1 if history else 1
            self._keep(number, label)
        if label != _ABANDONED and self._run.disk.exists(self._run.root / label):
            self._run.disk.share(self.path, self._run.snapshot(label, self.lane))
        return header, torn

    def _is_kept(self, left: AppendHandle, newest: HistoryFile) -> bool:
        """Tell whether a crash came after the segment was linked and before it was replaced."""
        return self._run.disk.read(newest.path, offset=0, size=0).inode == left.inode()

    # -- moving on ---------------------------------------------------------------------------------

    def _finish_seal(self) -> None:
        if self._owed:
            self._seal(*self._owed)

    def _seal(self, checkpoint: str, step: int) -> Sealed:
        """Write the seal, put the segment in its places, and only then owe nothing any more."""
        sealed = self._writer
        seal = sealed.seal(checkpoint=checkpoint, step=step, segment=self.segment)
        self._publish(seal)
        self._owed = None
        self._last = msgspec.convert(seal, Sealed, from_attributes=True)
        sealed.close(None)
        return self._last

    def _publish(self, seal: Seal) -> None:
        self._keep(seal.segment, seal.checkpoint)
        snapshot = self._run.snapshot(seal.checkpoint, self.lane)
        self._run.disk.make_directory(snapshot.parent)
        self._run.disk.share(self.path, snapshot)
        self.segment = seal.segment + 1
        self._writer = self._start(seal.segment)

    def _keep(self, segment: int, label: str) -> None:
        self._run.disk.make_directory(self._run.history_path)
        self._run.disk.share(self.path, self._run.closed(segment, label, self.lane))

    def _start(self, previous: int | None, *, recovered_torn_bytes: int = 0) -> SegmentWriter:
        """Put a fresh segment in the place of the live tail, atomically."""
        temporary = self.path.with_name(f".{self.path.name}.{self.segment:05d}.tmp")
        self._run.disk.remove(temporary)
        handle = self._run.disk.append(temporary, exclusive=True)
        try:
            with closed_on_error(handle):
                handle.lock()
                writer = self._begin(handle, previous, recovered_torn_bytes=recovered_torn_bytes)
                self._run.disk.replace(temporary, self.path)
        finally:
            self._run.disk.remove(temporary)
        return writer

    def _begin(
        self, handle: AppendHandle, previous: int | None, *, recovered_torn_bytes: int = 0
    ) -> SegmentWriter:
        opening = replace(
            self._author.opening(stream=self._stream, lane=self.lane, attempt=self.attempt),
            segment=self.segment,
            previous=previous,
            recovered_torn_bytes=recovered_torn_bytes,
        )
        return begin(self._run, self._author, handle=handle, opening=opening)


def _sealed_again(last: Sealed, *, records_since: int) -> Sealed:
    if records_since:
        raise OptionError(
            f"`{last.checkpoint}` is sealed with {last.records} records, "
            f"and {records_since} were written since",
            hint="They stay in the live tail; seal them under the next checkpoint's name",
        )
    return last
