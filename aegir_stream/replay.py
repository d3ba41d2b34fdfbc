"""Fold a view over a run: once (`replay`), or for as long as it grows (`follow`).

Both give the same state for the same records. Events of several streams and lanes are folded as
they are found, which is why a view must not depend on the order between them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, Generic, TypeVar

import anyio.to_thread
import msgspec

from aegir_stream.clock import SystemClock
from aegir_stream.errors import StepError
from aegir_stream.events import Progress
from aegir_stream.layout import RunDirectory
from aegir_stream.pacing import Pacer
from aegir_stream.source import Attempts, Level
from aegir_stream.surviving import SurvivingReader
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
        level: when a record counted.
        newest: number of the newest attempt in each stream when it was folded; a later one may have
            rewound it.
    """

    state: S
    cursors: Mapping[str, str]
    events: int = 0
    skipped: int = 0
    until: int | None = None
    attempts: Attempts = "surviving"
    level: Level = "live"
    newest: Mapping[str, int] = {}


def replay(
    run: RunDirectory,
    view: View[S],
    *,
    after: Replayed[S] | None = None,
    until: int | str | None = None,
    attempts: Attempts = "surviving",
    level: Level = "live",
) -> Replayed[S]:
    """Fold a view over what a run holds.

    No step counts twice after a resume, with one exception: `progress` holds nothing but rows, so
    all of them are folded, in the order of the file. An iteration that was run again comes again;
    a view lets its last row count, as `RunStateView` does.

    Args:
        run: the run directory.
        view: the fold.
        after: an earlier result to go on from; its state must not be used again. The fold starts
            over if a later attempt may have rewound the run since, or if `until`, `attempts` or
            `level` were others then.
        until: last step to fold, as a number or as the name of its checkpoint (`checkpoint-50`).
        attempts: `surviving` leaves out what a resume rewound; `all` folds what every attempt
            recorded.
        level: `live` counts every line; `committed` only those that agree with the checksum behind
            their append.

    Raises:
        RunNotFoundError: there is no such directory.
        UnreadableRunError: it, or a file in it, cannot be read.
        StepError: `until` is neither a step nor the name of a checkpoint.
    """
    begin = Replayed(
        state=view.initial(),
        cursors={},
        until=_last_step(until),
        attempts=attempts,
        level=level,
    )
    if after and _alike(after, begin):
        begin = after
    fold = _Fold(run.require(), view, begin=begin)
    while fold.advance():
        pass
    if fold.rewound:
        return replay(run, view, until=until, attempts=attempts, level=level)
    return fold.result()


async def follow(
    run: RunDirectory,
    view: View[S],
    *,
    clock: Clock | None = None,
    poll_s: tuple[float, float] = (0.005, 0.25),
    level: Level = "live",
) -> AsyncGenerator[Replayed[S], None]:
    """Yield the state of a view over the surviving records, now and whenever it changes.

    The first state is that of everything the run holds, and comes at once even if that is nothing;
    the directory need not exist yet. After a resume that rewound the run, the fold starts over.
    What cannot be read is waited for, and folded once it can be.
    """
    fastest_s, slowest_s = poll_s
    pacer = Pacer(clock or SystemClock(), fastest_s=fastest_s, slowest_s=slowest_s)
    fold = _following(run, view, level)
    first = True
    try:
        while True:
            changed = False
            while await anyio.to_thread.run_sync(fold.advance):
                changed = True
            if fold.rewound:
                fold = _following(run, view, level)
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
    run: RunDirectory,
    stream: str,
    *,
    attempts: Attempts = "surviving",
    level: Level = "live",
) -> Iterator[Any]:
    """Yield the events of a stream, decoded, in the order of the log; damaged lines are left out.

    With `surviving` no step that was run again after a resume comes twice. Only `progress`, which
    holds nothing but rows, yields all of them: the last row of an iteration is the one that counts.

    Raises:
        RunNotFoundError: there is no such directory.
        UnreadableRunError: it, or a file in it, cannot be read.
        OptionError: there is no such stream.
    """
    reader = SurvivingReader(run.require(), stream, attempts=attempts, level=level)
    while (events := reader.read()) is not None:
        yield from events


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
            stream: SurvivingReader(
                run,
                stream,
                attempts=begin.attempts,
                level=begin.level,
                after=begin.cursors.get(stream),
                newest=begin.newest.get(stream),
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
            newest={stream: reader.newest for stream, reader in self._readers.items()},
            events=self._events,
            skipped=self._begin.skipped + sum(r.skipped for r in self._readers.values()),
        )

    def _wants(self, event: Any) -> bool:
        step: int = event.iter if isinstance(event, Progress) else event.step
        return self._begin.until is None or step <= self._begin.until


def _following(run: RunDirectory, view: View[S], level: Level) -> _Fold[S]:
    begin = Replayed(state=view.initial(), cursors={}, level=level)
    return _Fold(run, view, begin=begin, patient=True)


def _alike(after: Replayed[S], begin: Replayed[S]) -> bool:
    """Tell whether an earlier result was folded from the same kind of records."""
    return (after.until, after.attempts, after.level) == (begin.until, begin.attempts, begin.level)


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
