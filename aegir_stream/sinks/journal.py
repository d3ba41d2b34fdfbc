"""The sink that matters: a run directory of plain files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aegir_stream.clock import SystemClock
from aegir_stream.durability import Durability, Medium, SyncFailure
from aegir_stream.errors import SinkClosedError, UnreadableRunError
from aegir_stream.events import Gap, Note
from aegir_stream.feeds import Feed
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.manifest import ensure_manifest
from aegir_stream.opening import Authorship, step_of
from aegir_stream.segments import SegmentChain
from aegir_stream.typing import Append, Clock, Sealed

if TYPE_CHECKING:
    from aegir_stream.launches import Launch

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
        total: how many iterations or steps the attempt means to make, for the manifest.
        control_lines: `False` writes data lines only; readers then know less.
        precision: significant digits of float fields, for the `Open` lines.
        durability: what is synced, and so what a loss of power may take.
        clock: where time stamps come from.

    Raises:
        OptionError: there is no such durability.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        rank: int = 0,
        world_size: int = 1,
        continues: str | None = None,
        identity: Mapping[str, Any] | None = None,
        total: int | None = None,
        control_lines: bool = True,
        precision: Mapping[str, int] | None = None,
        durability: Durability = "os",
        clock: Clock | None = None,
    ) -> None:
        self._run = run
        self._rank = rank
        self._world_size = world_size
        self._continues = continues
        self._identity = dict(identity or {})
        self._total = total
        self._control_lines = control_lines
        self._precision = dict(precision or {})
        self._medium = Medium(run.disk, durability=durability)
        self._clock = clock or SystemClock()
        self._chain: SegmentChain | None = None
        self._feeds: dict[str, Feed] = {}
        self._author: Authorship | None = None
        self._launch: Launch | None = None
        self._listed = False
        self._told: list[SyncFailure] = []
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
            self._make_root()
            manifest = self._manifest()
            self._author = self._authorship(manifest["run_id"])
            self._chain = SegmentChain(self._run, self._author, medium=self._medium)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UnreadableRunError(
                f"The run directory `{self._run.root}` cannot be written: {error.strerror}",
                hint="Choose another output_dir or grant this user access to it",
            ) from error
        self._launch = self._new_launch(self._chain.attempt) if self._rank == 0 else None
        # A manifest that cannot be written now is no reason not to record; `flush` tries again.
        with contextlib.suppress(OSError):
            self._list_attempt()

    async def write(self, append: Append) -> None:
        """Append lines and their trailer to the stream's file."""
        self._log(append.stream).writer.append(
            append.data, records=append.records, step=append.step, pass_=append.pass_
        )

    async def mark(self, event: Gap | Note, *, stream: str) -> None:
        """Write a control line into the stream's file."""
        self._log(stream).writer.mark(event)

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:
        """Seal the live tail as the checkpoint's snapshot, and sync it if that was asked for.

        The snapshot is there even if a sync has failed; `flush` tells of that.

        Raises:
            OptionError: the checkpoint was the last to be sealed, and records were written since.
        """
        chain = self._require_chain()
        for feed in self._feeds.values():
            feed.sync()
        return chain.seal(checkpoint=checkpoint, step=step)

    async def flush(self) -> None:
        """Return when what was written is as safe as the durability says.

        It is visible to readers before. Under `interval` it is on the medium then; under the others
        this makes no system call while all goes well.

        Raises:
            UnsyncedError: a sync has failed, here or in `seal`. Readers are told by a `Note`, and
                writing goes on in other files.
            OSError: something else that was to be made good failed once more.
        """
        if self._closed or not self._chain:
            return
        # Each step is taken whatever comes of the others, the last one first.
        with contextlib.ExitStack() as steps:
            steps.callback(self._answer)
            steps.callback(self._list_attempt)
            steps.callback(self._sync)
            steps.callback(self._tell)
            steps.callback(self._sync)

    async def aclose(self, *, status: str = "finished") -> None:
        """Close every file with its closing mark, and sync it if that was asked for.

        Raises:
            OSError: a closing mark could not be written, or a file not be synced; every file is
                released all the same.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as steps:
            steps.callback(self._answer)
            steps.callback(self._medium.sync_names)
            if self._launch:
                steps.callback(self._end_launch, self._launch, status)
            for feed in self._feeds.values():
                steps.callback(feed.close, status)
            if self._chain:
                steps.callback(self._chain.close, status)
                steps.callback(self._list_attempt)
                steps.callback(self._tell)

    # -- what is owed ------------------------------------------------------------------------------

    def _sync(self) -> None:
        if self._chain and self._medium.durability == "interval":
            self._chain.sync()
            for feed in self._feeds.values():
                feed.sync()
            self._medium.sync_names()

    def _tell(self) -> None:
        """Tell the readers what may not be on the medium, in the file that goes on."""
        while self._medium.failures:
            failure = self._medium.failures[0]
            self._log(failure.stream).writer.mark(failure.note())
            self._told.append(self._medium.failures.pop(0))

    def _answer(self) -> None:
        """Tell the owner of the sink."""
        failed = [*self._told, *self._medium.failures]
        self._told = []
        if failed:
            raise failed[0].error()

    def _list_attempt(self) -> None:
        """Put this attempt into the manifest, once."""
        if self._launch and not self._listed:
            self._launch.enter(self._identity)
            self._medium.renamed(self._run.manifest_path)
            self._listed = True

    def _end_launch(self, launch: Launch, status: str) -> None:
        """Say in the manifest that this attempt has ended, once its files have said so."""
        # Of a run that was deleted meanwhile there is nothing to say.
        with contextlib.suppress(FileNotFoundError):
            launch.end(status)
        self._medium.renamed(self._run.manifest_path)

    # -- parts -------------------------------------------------------------------------------------

    def _make_root(self) -> None:
        """Make the run directory; remember which names have to be synced."""
        root = self._run.root
        if self._medium.syncs:
            made = [path for path in (root, *root.parents) if not self._run.disk.exists(path)]
            self._medium.renamed(*made)
        self._run.disk.make_directory(root)

    def _log(self, stream: str) -> SegmentChain | Feed:
        """Return what a stream is written to."""
        chain = self._require_chain()
        if STREAMS[stream].sealed:
            return chain
        if stream not in self._feeds and self._author:
            self._feeds[stream] = Feed(
                self._run, self._author, stream=stream, attempt=chain.attempt, medium=self._medium
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

    def _manifest(self) -> dict[str, Any]:
        return ensure_manifest(self._run, created_at=self._clock.time())

    def _new_launch(self, attempt: int) -> Launch:
        from aegir_stream.launches import Launch  # noqa: PLC0415 - only who records needs it

        facts = {
            "attempt": attempt,
            "continues": self._continues,
            "world_size": self._world_size,
        }
        return Launch(
            self._run, clock=self._clock, read=self._manifest, facts=facts, total=self._total
        )
