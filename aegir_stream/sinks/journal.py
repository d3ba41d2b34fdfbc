"""The sink that matters: a run directory of plain files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from aegir_stream.clock import SystemClock
from aegir_stream.errors import SinkClosedError, UnreadableRunError
from aegir_stream.events import SCHEMA, Gap, Note
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.opening import Authorship, open_feed, step_of
from aegir_stream.segments import SegmentChain
from aegir_stream.typing import Append, Clock, Sealed
from aegir_stream.writer import SegmentWriter

__all__ = ["JournalSink"]

WRITER = "aegir-stream"


class JournalSink:
    """Appends to the files of a run directory; one process, one journal.

    Disk calls block the loop that awaits them. The journals of all ranks of one launch write under
    one attempt number (`aegir_stream.attempts`).

    Args:
        run: the run directory, created when missing.
        rank: process index; rank 0 keeps the manifest.
        world_size: number of processes, for the manifest.
        continues: checkpoint directory name that the process resumed from, such as
            `checkpoint-50`; `None` for a start from scratch.
        identity: what the run is about (model, SAEs, layers), for the manifest.
        control_lines: `False` writes data lines only; readers then know less.
        precision: significant digits of float fields, for the `Open` lines.
        clock: where time stamps come from.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        rank: int = 0,
        world_size: int = 1,
        continues: str | None = None,
        identity: Mapping[str, Any] | None = None,
        control_lines: bool = True,
        precision: Mapping[str, int] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._run = run
        self._rank = rank
        self._world_size = world_size
        self._continues = continues
        self._identity = dict(identity or {})
        self._control_lines = control_lines
        self._precision = dict(precision or {})
        self._clock = clock or SystemClock()
        self._chain: SegmentChain | None = None
        self._feeds: dict[str, SegmentWriter] = {}
        self._author: Authorship | None = None
        self._closed = False

    async def open(self) -> None:
        """Create the directory and its manifest, recover what was left, start the live tail.

        Raises:
            UnreadableRunError: the directory cannot be created or written.
            OSError: another disk error.
        """
        if self._chain:
            return
        try:
            self._run.disk.make_directory(self._run.root)
            manifest = self._run.ensure_manifest(self._new_manifest())
            self._author = self._authorship(manifest["run_id"])
            self._chain = SegmentChain(self._run, self._author)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UnreadableRunError(
                f"The run directory `{self._run.root}` cannot be written: {error.strerror}",
                hint="Choose another output_dir or grant this user access to it",
            ) from error
        if self._rank == 0:
            self._run.write_manifest(self._with_attempt(manifest, self._chain.attempt))

    async def write(self, append: Append) -> None:
        """Append lines and their trailer to the stream's file."""
        self._writer(append.stream).append(
            append.data, records=append.records, step=append.step, pass_=append.pass_
        )

    async def mark(self, event: Gap | Note, *, stream: str) -> None:
        """Write a control line into the stream's file."""
        self._writer(stream).control(event)

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:
        """Seal the live tail as the checkpoint's snapshot.

        Raises:
            OptionError: the checkpoint was the last to be sealed, and records were written since.
        """
        return self._require_chain().seal(checkpoint=checkpoint, step=step)

    async def flush(self) -> None:
        """Do nothing: a write is visible to readers when it returns."""

    async def aclose(self, *, status: str = "finished") -> None:
        """Close every file with its closing mark.

        Raises:
            OSError: a closing mark could not be written; every file is released all the same.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as files:
            for feed in self._feeds.values():
                files.callback(feed.close, status)
            if self._chain:
                files.callback(self._chain.close, status)

    # -- parts -------------------------------------------------------------------------------------

    def _writer(self, stream: str) -> SegmentWriter:
        chain = self._require_chain()
        if STREAMS[stream].sealed:
            return chain.writer
        if stream not in self._feeds and self._author:
            self._feeds[stream] = open_feed(
                self._run, self._author, stream=stream, attempt=chain.attempt
            )
        return self._feeds[stream]

    def _require_chain(self) -> SegmentChain:
        if self._closed or not self._chain:
            state = "closed" if self._closed else "not open yet"
            raise SinkClosedError(
                f"The journal of `{self._run.root}` is {state}", hint="Write between open and close"
            )
        return self._chain

    def _authorship(self, log: str) -> Authorship:
        return Authorship(
            log=log,
            rank=self._rank,
            writer=WRITER,
            continues=self._continues,
            continues_step=step_of(self._continues),
            precision=self._precision,
            control_lines=self._control_lines,
        )

    def _new_manifest(self) -> dict[str, Any]:
        return {
            "run_id": os.urandom(6).hex(),
            "schema": SCHEMA,
            "created_at": self._clock.time(),
            "attempts": [],
        }

    def _with_attempt(self, manifest: dict[str, Any], attempt: int) -> dict[str, Any]:
        this = {
            "attempt": attempt,
            "started_at": self._clock.time(),
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "continues": self._continues,
            "world_size": self._world_size,
        }
        return manifest | self._identity | {"attempts": [*manifest.get("attempts", []), this]}
