"""Read the events of a stream that survive: those that no resume rewound."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from aegir_stream import codec
from aegir_stream.chunk import Chunk
from aegir_stream.cursor import Cursor
from aegir_stream.errors import MalformedEventError, UnreadableRunError
from aegir_stream.events import Corrupt, Open, Rewound, SourceSwitch, Stalled
from aegir_stream.layout import STREAMS, RunDirectory, Stream
from aegir_stream.lineage import survey
from aegir_stream.source import Attempts, Level, RunSource

__all__ = ["Cuts", "SurvivingReader"]


class SurvivingReader:
    """Decodes one stream, leaving out what a later attempt rewound.

    Touches the disk in `read` only.

    Args:
        run: the run directory.
        stream: name of the stream.
        attempts: `all` leaves nothing out.
        level: when a record counts.
        after: text of a cursor to go on from.
        newest: number of the newest attempt that was known there, if that is known.
        patient: whether to try again what could not be read, instead of raising.

    Attributes:
        rewound: whether a later attempt may have rewound what was read already.
        skipped: lines that were no events.
    """

    def __init__(
        self,
        run: RunDirectory,
        stream: str,
        *,
        attempts: Attempts,
        level: Level = "live",
        after: str | None = None,
        newest: int | None = None,
        patient: bool = False,
    ) -> None:
        self._run = run
        self._source = RunSource(
            run, stream, after=after, start="start", attempts=attempts, level=level
        )
        self._stream = STREAMS[stream]
        self._resumes = after is not None
        self._newest = newest
        self._patient = patient
        self._all = attempts == "all"
        self._cuts: Cuts | None = Cuts() if self._all else None
        self.rewound = False
        self.skipped = 0

    @property
    def cursor(self) -> Cursor:
        """Place behind everything that was read."""
        return self._source.cursor

    @property
    def newest(self) -> int:
        """Number of the newest attempt that was known when reading began; 0 for none."""
        return self._cuts.newest if self._cuts else 0

    def read(self) -> list[Any] | None:
        """Return the next events, which may be none; `None` when nothing is left for now.

        Raises:
            UnreadableRunError: something cannot be read, and the reader is not patient.
        """
        cuts = self._look_up_cuts()
        if cuts is None:
            return None
        deliveries = self._source.poll()
        if not deliveries:
            return None
        events: list[Any] = []
        for delivery in deliveries:
            match delivery:
                case Chunk():
                    events.extend(self._decoded(delivery, cuts))
                case Corrupt(lines=lines):
                    self.skipped += lines
                case Stalled():
                    self._stall(delivery)
                case Rewound(attempt=attempt):
                    self.rewound = self.rewound or not self._knows(attempt)
                case SourceSwitch() as switch:
                    self._enter(switch)
        return events

    def _look_up_cuts(self) -> Cuts | None:
        """Find out, once, what was rewound; `None` if that cannot be read for now."""
        if self._cuts:
            return self._cuts
        try:
            self._cuts = Cuts.of(self._run, self._stream)
        except OSError as error:
            path = str(error.filename or self._run.root)
            self._stall(Stalled(path=path, reason=error.strerror or str(error)))
        else:
            since = self._newest
            self.rewound = since is not None and self._cuts.newest > max(1, since)
        return self._cuts

    def _enter(self, switch: SourceSwitch) -> None:
        """Notice a cursor that was refused, and an attempt of which only new lanes tell."""
        refused = (switch.verdict or "resumed") != "resumed"
        later = not self._all and (switch.attempt or 1) > max(1, self.newest)
        self.rewound = self.rewound or refused or later

    def _decoded(self, chunk: Chunk, cuts: Cuts) -> Iterator[Any]:
        cut = cuts.before(lane=chunk.lane, attempt=chunk.attempt)
        for record, head in zip(chunk.records, chunk.heads, strict=True):
            if cut is not None and head.step > cut:
                continue
            try:
                yield codec.decode(record, self._stream.kind)
            except MalformedEventError:
                self.skipped += 1

    def _knows(self, attempt: int) -> bool:
        """Tell whether nothing was folded that this attempt rewound."""
        # What an earlier fold went past is folded, cut or not.
        known = self._cuts is not None and self._cuts.has(attempt) and not self._resumes
        return self._all or known

    def _stall(self, stalled: Stalled) -> None:
        if not self._patient:
            raise UnreadableRunError(
                f"`{stalled.path}` cannot be read: {stalled.reason}",
                hint=f"Mend that, for example with: chmod a+rX '{stalled.path}'; then read again",
            )


class Cuts:
    """The last step that each attempt left standing of those before it, over all lanes.

    A lane whose process did not come back has no word of the rewind in its own files.
    """

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}
        self._followed: set[tuple[str, int]] = set()

    @classmethod
    def of(cls, run: RunDirectory, stream: Stream) -> Cuts:
        """Look up what the files of a stream say.

        Raises:
            OSError: one of them cannot be read.
        """
        cuts = cls()
        for lane in run.lanes(stream.name):
            for place in survey(run, stream=stream.name, lane=lane).places.values():
                if header := place.header(run):
                    cuts.add(header)
                    if stream.sealed:
                        cuts.follow(lane, header.attempt)
        if not stream.sealed:
            cuts._scan(RunSource(run, stream.name, start="start"))
        return cuts

    @property
    def newest(self) -> int:
        """Number of the newest attempt; 0 for none."""
        return max(self._steps, default=0)

    def has(self, attempt: int) -> bool:
        """Tell whether an attempt's cut is known."""
        return attempt in self._steps

    def add(self, opening: Open) -> None:
        """Take in what the first line of a segment, or of an attempt's part of it, says."""
        self._add(opening.attempt, opening.continues_step)

    def follow(self, lane: str, attempt: int) -> None:
        """Note that a lane's lineage leaves out what an attempt rewound in the lane."""
        self._followed.add((lane, attempt))

    def before(self, *, lane: str, attempt: int) -> int | None:
        """Return the last step of an attempt in a lane that survives; `None` if all do.

        A lane's lineage already leaves out what the lane's own attempts rewound.
        """
        later = (
            step
            for other, step in self._steps.items()
            if other > attempt and (lane, other) not in self._followed
        )
        return min(later, default=None)

    def _scan(self, source: RunSource) -> None:
        """Take in the rewinds in files to which several attempts append."""
        while deliveries := source.poll():
            for delivery in deliveries:
                match delivery:
                    case Rewound(attempt=attempt, to_step=to_step):
                        self._add(attempt, to_step)
                    case Stalled(path=path, reason=reason):
                        raise OSError(errno.EIO, reason, path)

    def _add(self, attempt: int, to_step: int | None) -> None:
        self._steps[attempt] = -1 if to_step is None else to_step
