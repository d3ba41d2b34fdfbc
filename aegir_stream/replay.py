"""Fold a view over a run: once (`replay`), or for as long as it grows (`follow`).

Both give the same state for the same records. Events of several streams and lanes are folded as
they are found, which is why a view must not depend on the order between them.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, Generic, TypeVar

import anyio.to_thread
import msgspec

from aegir_stream import codec
from aegir_stream.chunk import Chunk
from aegir_stream.clock import SystemClock
from aegir_stream.cursor import Cursor
from aegir_stream.errors import MalformedEventError, StepError, UnreadableRunError
from aegir_stream.events import Corrupt, Progress, Rewound, SourceSwitch, Stalled
from aegir_stream.layout import STREAMS, RunDirectory, Stream
from aegir_stream.lineage import survey
from aegir_stream.pacing import Pacer
from aegir_stream.source import Attempts, RunSource
from aegir_stream.typing import Clock, View

__all__ = ["Replayed", "follow", "read_events", "replay"]

S = TypeVar("S")


class Replayed(msgspec.Struct, Generic[S], frozen=True, kw_only=True):
    """A view's state, and what it was folded from.

    Attributes:
        state: the view's state.
        cursors: text of the cursor reached in each stream; resumes the fold.
        events: number of events folded.
        skipped: lines that were no events.
        until: last step that was folded, `None` for all.
        attempts: attempts that were folded.
    """

    state: S
    cursors: Mapping[str, str]
    events: int = 0
    skipped: int = 0
    until: int | None = None
    attempts: Attempts = "surviving"


def replay(
    run: RunDirectory,
    view: View[S],
    *,
    after: Replayed[S] | None = None,
    until: int | str | None = None,
    attempts: Attempts = "surviving",
) -> Replayed[S]:
    """Fold a view over what a run holds.

    No step counts twice after a resume, with one exception: `progress` holds nothing but rows, so
    all of them are folded, in the order of the file. An iteration that was run again comes again;
    a view lets its last row count, as `RunStateView` does.

    Args:
        run: the run directory.
        view: the fold.
        after: an earlier result to go on from; its state must not be used again. The fold starts
            over if the run was rewound since, or if `until` or `attempts` were others then.
        until: last step to fold, as a number or as the name of its checkpoint (`checkpoint-50`).
        attempts: `surviving` leaves out what a resume rewound; `all` folds what every attempt
            recorded.

    Raises:
        RunNotFoundError: there is no such directory.
        UnreadableRunError: it, or a file in it, cannot be read.
        StepError: `until` is neither a step nor the name of a checkpoint.
    """
    begin = Replayed(state=view.initial(), cursors={}, until=_last_step(until), attempts=attempts)
    if after and (after.until, after.attempts) == (begin.until, begin.attempts):
        begin = after
    fold = _Fold(run.require(), view, begin=begin)
    while fold.advance():
        pass
    if fold.rewound:
        return replay(run, view, until=until, attempts=attempts)
    return fold.result()


async def follow(
    run: RunDirectory,
    view: View[S],
    *,
    clock: Clock | None = None,
    poll_s: tuple[float, float] = (0.005, 0.25),
) -> AsyncGenerator[Replayed[S], None]:
    """Yield the state of a view over the surviving records, now and whenever it changes.

    The first state is that of everything the run holds, and comes at once even if that is nothing;
    the directory need not exist yet. After a resume that rewound the run, the fold starts over.
    What cannot be read is waited for, and folded once it can be.
    """
    fastest_s, slowest_s = poll_s
    pacer = Pacer(clock or SystemClock(), fastest_s=fastest_s, slowest_s=slowest_s)
    fold = _following(run, view)
    first = True
    try:
        while True:
            changed = False
            while await anyio.to_thread.run_sync(fold.advance):
                changed = True
            if fold.rewound:
                fold = _following(run, view)
                continue
            if first or changed:
                first = False
                yield fold.result()
                pacer.news()
            else:
                await pacer.pause(run.root)
    finally:
        pacer.close()


def read_events(
    run: RunDirectory, stream: str, *, attempts: Attempts = "surviving"
) -> Iterator[Any]:
    """Yield the events of a stream, decoded, in the order of the log; damaged lines are left out.

    With `surviving` no step that was run again after a resume comes twice. Only `progress`, which
    holds nothing but rows, yields all of them: the last row of an iteration is the one that counts.

    Raises:
        RunNotFoundError: there is no such directory.
        UnreadableRunError: it, or a file in it, cannot be read.
    """
    reader = _StreamReader(run.require(), stream, attempts=attempts)
    while (events := reader.read()) is not None:
        yield from events


class _StreamReader:
    """Decodes one stream, leaving out what a later attempt rewound.

    Touches the disk in `read` only. A patient one tries again what it could not read.
    """

    def __init__(
        self,
        run: RunDirectory,
        stream: str,
        *,
        attempts: Attempts,
        after: str | None = None,
        patient: bool = False,
    ) -> None:
        self._run = run
        self._stream = STREAMS[stream]
        self._source = RunSource(run, stream, after=after, start="start", attempts=attempts)
        self._resumes = after is not None
        self._patient = patient
        self._cuts: _Cuts | None = _Cuts() if attempts == "all" else None
        self._all = attempts == "all"
        self.rewound = False
        self.skipped = 0

    @property
    def cursor(self) -> Cursor:
        return self._source.cursor

    def read(self) -> list[Any] | None:
        """Return the next events, which may be none; `None` when nothing is left for now.

        Raises:
            UnreadableRunError: something cannot be read, and the reader is not patient.
        """
        try:
            self._cuts = self._cuts or _Cuts.of(self._run, self._stream)
        except OSError as error:
            path = str(error.filename or self._run.root)
            self._stall(Stalled(path=path, reason=error.strerror or str(error)))
            return None
        deliveries = self._source.poll()
        if not deliveries:
            return None
        events: list[Any] = []
        for delivery in deliveries:
            match delivery:
                case Chunk():
                    events.extend(self._decoded(delivery, self._cuts.before(delivery)))
                case Corrupt():
                    self.skipped += 1
                case Stalled():
                    self._stall(delivery)
                case Rewound(attempt=attempt):
                    self.rewound = self.rewound or not self._knows(attempt)
                case SourceSwitch(verdict=verdict) if verdict and verdict != "resumed":
                    self.rewound = True
        return events

    def _decoded(self, chunk: Chunk, cut: int | None) -> Iterator[Any]:
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


class _Fold(Generic[S]):
    """A view's state on its way through the streams it wants."""

    def __init__(
        self, run: RunDirectory, view: View[S], *, begin: Replayed[S], patient: bool = False
    ) -> None:
        self._view = view
        self._begin = begin
        self._state = begin.state
        self._events = begin.events
        self._readers = {
            stream: _StreamReader(
                run,
                stream,
                attempts=begin.attempts,
                after=begin.cursors.get(stream),
                patient=patient,
            )
            for stream in view.streams
        }

    @property
    def rewound(self) -> bool:
        """Whether the run was rewound behind what is folded already."""
        return any(reader.rewound for reader in self._readers.values())

    def advance(self) -> bool:
        """Fold what every stream has next; tell whether there was anything."""
        advanced = False
        for reader in self._readers.values():
            events = reader.read()
            advanced = advanced or events is not None
            wanted = [event for event in events or () if self._wants(event)]
            if wanted:
                self._state = self._view.fold(self._state, wanted)
                self._events += len(wanted)
        return advanced

    def result(self) -> Replayed[S]:
        return msgspec.structs.replace(
            self._begin,
            state=self._state,
            cursors={stream: reader.cursor.text() for stream, reader in self._readers.items()},
            events=self._events,
            skipped=self._begin.skipped + sum(r.skipped for r in self._readers.values()),
        )

    def _wants(self, event: Any) -> bool:
        step: int = event.iter if isinstance(event, Progress) else event.step
        return self._begin.until is None or step <= self._begin.until


def _following(run: RunDirectory, view: View[S]) -> _Fold[S]:
    return _Fold(run, view, begin=Replayed(state=view.initial(), cursors={}), patient=True)


class _Cuts:
    """The last step that each attempt left standing of those before it, over all lanes.

    A lane whose process did not come back has no word of the rewind in its own files.
    """

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}
        self._followed: set[tuple[str, int]] = set()

    @classmethod
    def of(cls, run: RunDirectory, stream: Stream) -> _Cuts:
        """Look up what the files of a stream say.

        Raises:
            OSError: one of them cannot be read.
        """
        cuts = cls()
        for lane in run.lanes(stream.name):
            for place in survey(run, stream=stream.name, lane=lane).places.values():
                if header := place.header(run):
                    cuts._add(header.attempt, header.continues_step)
                    if stream.sealed:
                        cuts._followed.add((lane, header.attempt))
        if not stream.sealed:
            cuts._scan(RunSource(run, stream.name, start="start"))
        return cuts

    def has(self, attempt: int) -> bool:
        """Tell whether an attempt's cut is known."""
        return attempt in self._steps

    def before(self, chunk: Chunk) -> int | None:
        """Return the last step of a chunk that survives; `None` if all do.

        A lane's lineage already leaves out what the lane's own attempts rewound.
        """
        later = (
            step
            for attempt, step in self._steps.items()
            if attempt > chunk.attempt and (chunk.lane, attempt) not in self._followed
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


def _last_step(until: int | str | None) -> int | None:
    if until is None or isinstance(until, int):
        return until
    digits = until.removeprefix("checkpoint-")
    if not digits.isdigit():
        raise StepError(
            f"Expected a step or the name of a checkpoint, got `{until}`",
            hint="Write, for example, 40 or checkpoint-40",
        )
    return int(digits)
