"""The sink of a job that writes nothing but its progress feed."""

from __future__ import annotations

import contextlib
from typing import Any

from aegir_stream.clock import SystemClock
from aegir_stream.durability import Medium
from aegir_stream.errors import OptionError, SinkClosedError
from aegir_stream.events import Gap, Note
from aegir_stream.feeds import Feed
from aegir_stream.launches import Launch
from aegir_stream.layout import RunDirectory
from aegir_stream.manifest import ensure_manifest
from aegir_stream.opening import Authorship
from aegir_stream.typing import Append, Clock, Sealed

__all__ = ["ProgressSink"]

STREAM = "progress"
WRITER = "aegir-stream"


class ProgressSink:
    """Appends to a run's progress feed, and enters the launch in its manifest.

    Disk calls block the loop that awaits them. The feed holds nothing but rows, so marks leave no
    trace in it.

    Args:
        run: the run directory, created when missing.
        total: how many iterations the job means to make, for the manifest.
        clock: where time stamps come from.
    """

    def __init__(
        self, run: RunDirectory, *, total: int | None = None, clock: Clock | None = None
    ) -> None:
        self._run = run
        self._clock = clock or SystemClock()
        self._launch = Launch(run, clock=self._clock, read=self._manifest, total=total)
        self._feed: Feed | None = None
        self._entered = False
        self._closed = False

    async def open(self) -> None:
        """Create the directory and its manifest, complete what was left, open the feed.

        Raises:
            OSError: the directory cannot be created or written.
        """
        if self._feed:
            return
        self._run.disk.make_directory(self._run.root)
        author = Authorship(log=self._manifest()["run_id"], writer=WRITER)
        medium = Medium(self._run.disk)
        self._feed = Feed(self._run, author, stream=STREAM, attempt=1, medium=medium)
        # A manifest that cannot be written now is no reason not to record; `flush` tries again.
        with contextlib.suppress(OSError):
            self._enter()

    async def write(self, append: Append) -> None:
        """Append rows.

        Raises:
            OptionError: they are of another stream.
        """
        if append.stream != STREAM:
            raise OptionError(
                f"Expected the stream `{STREAM}`, got `{append.stream}`",
                hint="A JournalSink writes all streams of a run",
            )
        self._require_feed().writer.append(append.data, records=append.records, step=append.step)

    async def mark(self, event: Gap | Note, *, stream: str) -> None:
        """Do nothing: the feed has no place for it."""

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:
        """Do nothing: checkpoints do not divide the feed."""

    async def flush(self) -> None:
        """Enter the launch in the manifest, if that has not worked yet.

        What was written is visible to readers before.

        Raises:
            OSError: it does not work now.
        """
        if self._feed and not self._closed:
            self._enter()

    async def aclose(self, *, status: str = "finished") -> None:
        """Release the feed and say in the manifest how the launch ended.

        Raises:
            OSError: the manifest cannot be written; the feed is released all the same.
        """
        if self._closed:
            return
        self._closed = True
        if self._feed:
            self._feed.close(status)
            # Of a run that was deleted meanwhile there is nothing to say.
            with contextlib.suppress(FileNotFoundError):
                self._launch.end(status)

    def _enter(self) -> None:
        if not self._entered:
            self._launch.enter()
            self._entered = True

    def _require_feed(self) -> Feed:
        if self._closed or not self._feed:
            state = "closed" if self._closed else "not open yet"
            raise SinkClosedError(
                f"The feed of `{self._run.root}` is {state}", hint="Write between open and close"
            )
        return self._feed

    def _manifest(self) -> dict[str, Any]:
        return ensure_manifest(self._run, created_at=self._clock.time())
