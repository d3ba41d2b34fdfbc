"""Fold a view over a run: once (`replay`), or for as long as it grows (`follow`).

Both give the same state for the same records. Events of several streams and lanes are folded as
they are found, which is why a view must not depend on the order between them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, Generic, TypeVar

import anyio.to_thread
import msgspec

from aegir_stream import codec
from aegir_stream.chunk import Chunk
from aegir_stream.clock import SystemClock
from aegir_stream.cursor import Cursor
from aegir_stream.errors import MalformedEventError, StepError
from aegir_stream.events import Corrupt, Progress, Rewound, SourceSwitch
from aegir_stream.layout import STREAMS, RunDirectory
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
    """

    state: S
    cursors: Mapping[str, str]
    events: int = 0
    skipped: int = 0


def replay(
    run: RunDirectory,
    view: View[S],
    *,
    after: Replayed[S] | None = None,
    until: int | str | None = None,
    attempts: Attempts = "surviving",
) -> Replayed[S]:
    """Fold a view over what a run holds.

    Args:
        run: the run directory.
        view: the fold.
        after: an earlier result to go on from; its state must not be used again. If the run was
            rewound since, the fold starts over.
        until: last step to fold, as a number or as the name of its checkpoint (`checkpoint-50`).
        attempts: `surviving` counts no step twice after a resume; `all` folds what every attempt
            recorded.

    Raises:
        RunNotFoundError: there is no such directory.
        UnreadableRunError: it may not be read.
        StepError: `until` is neither a step nor the name of a checkpoint.
    """
    last = _last_step(until)
    fold = _Fold(run.require(), view, after=after, attempts=attempts, last_step=last)
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
    """
    fastest_s, slowest_s = poll_s
    pacer = Pacer(clock or SystemClock(), fastest_s=fastest_s, slowest_s=slowest_s)
    fold = _Fold(run, view)
    first = True
    try:
        while True:
            changed = False
            while await anyio.to_thread.run_sync(fold.advance):
                changed = True
            if fold.rewound:
                fold = _Fold(run, view)
                continue
            if first or changed:
                first = False
                yield fold.result()
                pacer.news()
            elif not pacer.watch(run.root):
                await pacer.wait()
    finally:
        pacer.close()


def read_events(
    run: RunDirectory, stream: str, *, attempts: Attempts = "surviving"
) -> Iterator[Any]:
    """Yield the events of a stream, decoded, in the order of the log; damaged lines are left out.

    Raises:
        RunNotFoundError: there is no such directory.
        UnreadableRunError: it may not be read.
    """
    reader = _StreamReader(run.require(), stream, attempts=attempts)
    while (events := reader.read()) is not None:
        yield from events


class _StreamReader:
    """Decodes one stream, leaving out what a later attempt rewound."""

    def __init__(
        self, run: RunDirectory, stream: str, *, attempts: Attempts, after: str | None = None
    ) -> None:
        self._kind = STREAMS[stream].kind
        self._source = RunSource(run, stream, after=after, start="start", attempts=attempts)
        self._all = attempts == "all"
        self._cuts = {} if self._all else _cuts(run, stream)
        # Rewinds that are in the file already are cut out, unless an earlier fold went past them.
        self._known = frozenset() if after else frozenset(self._cuts)
        self.rewound = False
        self.skipped = 0

    @property
    def cursor(self) -> Cursor:
        return self._source.cursor

    def read(self) -> list[Any] | None:
        """Return the next events, which may be none; `None` when nothing is left for now."""
        deliveries = self._source.poll()
        if not deliveries:
            return None
        events: list[Any] = []
        for delivery in deliveries:
            match delivery:
                case Chunk():
                    events.extend(self._decoded(delivery))
                case Corrupt():
                    self.skipped += 1
                case Rewound(attempt=attempt):
                    self.rewound = self.rewound or not (self._all or attempt in self._known)
                case SourceSwitch(verdict=verdict) if verdict and verdict != "resumed":
                    self.rewound = True
        return events

    def _decoded(self, chunk: Chunk) -> Iterator[Any]:
        cut = min((c for a, c in self._cuts.items() if a > chunk.attempt), default=None)
        for record, head in zip(chunk.records, chunk.heads, strict=True):
            if cut is not None and head.step > cut:
                continue
            try:
                yield codec.decode(record, self._kind)
            except MalformedEventError:
                self.skipped += 1


class _Fold(Generic[S]):
    """A view's state on its way through the streams it wants."""

    def __init__(
        self,
        run: RunDirectory,
        view: View[S],
        *,
        after: Replayed[S] | None = None,
        attempts: Attempts = "surviving",
        last_step: int | None = None,
    ) -> None:
        self._view = view
        self._last_step = last_step
        self._state = after.state if after else view.initial()
        self._events = after.events if after else 0
        self._skipped = after.skipped if after else 0
        cursors = after.cursors if after else {}
        self._readers = {
            stream: _StreamReader(run, stream, attempts=attempts, after=cursors.get(stream))
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
        return Replayed(
            state=self._state,
            cursors={stream: reader.cursor.text() for stream, reader in self._readers.items()},
            events=self._events,
            skipped=self._skipped + sum(reader.skipped for reader in self._readers.values()),
        )

    def _wants(self, event: Any) -> bool:
        step: int = event.iter if isinstance(event, Progress) else event.step
        return self._last_step is None or step <= self._last_step


def _cuts(run: RunDirectory, stream: str) -> dict[int, int]:
    """Return, by attempt, the last step of earlier attempts that it left standing.

    Sealed streams need none: their lineage already leaves out what was rewound.
    """
    if STREAMS[stream].sealed:
        return {}
    source = RunSource(run, stream, start="start")
    cuts: dict[int, int] = {}
    while deliveries := source.poll():
        for delivery in deliveries:
            if isinstance(delivery, Rewound):
                cuts[delivery.attempt] = -1 if delivery.to_step is None else delivery.to_step
    return cuts


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
