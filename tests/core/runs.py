"""Runs to test on: scripted lives of a run, and the ways of reading it."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.config import P5Cfg
from aegir_stream.disk import AppendHandle, Disk
from aegir_stream.events import SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from aegir_stream.system import System
from aegir_stream.testing import make_append, make_record
from aegir_stream.typing import Sealed

T = TypeVar("T")


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, as those of the journal do not."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    raise AssertionError("the coroutine suspended")


class Life:
    """A run as its trainer lives it: steps, checkpoints, kills, resumes.

    Attributes:
        surviving: records that a replay must find, in order.
        everything: records of all attempts, in order.
    """

    def __init__(self, run: RunDirectory, *, rank: int = 0, control_lines: bool = True) -> None:
        self.run = run
        self.rank = rank
        self.control_lines = control_lines
        self.surviving: list[SAELogRecord] = []
        self.everything: list[SAELogRecord] = []
        self.saved: dict[str, int] = {}
        self.step = 0
        self.serial = 0
        self.begin(None)

    def begin(self, continues: str | None) -> None:
        """Start an attempt."""
        self.sink = JournalSink(
            self.run, rank=self.rank, continues=continues, control_lines=self.control_lines
        )
        drive(self.sink.open())

    def record_step(self, size: int = 3) -> None:
        """Take a step that records `size` tokens."""
        self.step += 1
        fresh = [self._record(token) for token in range(size)]
        if fresh:
            drive(self.sink.write(make_append(*fresh)))
        self.surviving += fresh
        self.everything += fresh

    def save_unsealed(self) -> str:
        """Save a checkpoint as far as the trainer does that by itself; return its name."""
        name = f"checkpoint-{self.step}"
        (self.run.root / name).mkdir(exist_ok=True)
        self.saved[name] = len(self.surviving)
        return name

    def save(self) -> Sealed | None:
        """Save a checkpoint."""
        name = self.save_unsealed()
        return drive(self.sink.seal(checkpoint=name, step=self.step))

    def kill(self, *, torn: bytes = b"") -> None:
        """Die as SIGKILL kills: no closing mark, perhaps in the middle of a line."""
        if torn:
            with self.run.live("sae_features", f"rank{self.rank}").open("ab") as file:
                file.write(torn)
        for writer in self._writers():
            writer._handle.close()

    def was_sealed(self, step: int) -> bool:
        """Tell whether a checkpoint of this step was ever sealed, in whichever attempt."""
        return any(file.label == f"checkpoint-{step}" for file in self.run.history())

    def resume(self, checkpoint: str | None) -> None:
        """Start the next attempt, from a checkpoint or from scratch."""
        kept = self.saved[checkpoint] if checkpoint else 0
        self.surviving = self.surviving[:kept]
        self.step = int(checkpoint.removeprefix("checkpoint-")) if checkpoint else 0
        self.saved = {name: at for name, at in self.saved.items() if at <= kept}
        self.begin(checkpoint)

    def finish(self) -> None:
        """End the run."""
        drive(self.sink.aclose())

    def _record(self, token: int) -> SAELogRecord:
        self.serial += 1
        return msgspec.structs.replace(
            make_record(step=self.step, token=token), completion=self.serial
        )

    def _writers(self) -> list[Any]:
        chain = self.sink._chain
        return [log._writer for log in (*self.sink._feeds.values(), chain) if log]


class FullDisk(Disk):
    """A disk that is full from a line on, until mended.

    Attributes:
        stops: how that line begins.
        after: how many bytes of it are still taken.
    """

    def __init__(self, stops: bytes, *, after: int = 0) -> None:
        super().__init__()
        self.stops = stops
        self.after = after
        self.full = False

    def append(self, path: Path, *, exclusive: bool = False) -> AppendHandle:
        """Open a file on the full disk."""
        return _CrampedHandle(path, exclusive=exclusive, disk=self)

    def mend(self) -> None:
        """Make room."""
        self.stops, self.full = b"no such line", False


class _CrampedHandle(AppendHandle):
    def __init__(self, path: Path, *, exclusive: bool, disk: FullDisk) -> None:
        super().__init__(System(), path, exclusive=exclusive)
        self._disk = disk

    def write(self, data: memoryview | bytes) -> int:
        if not self._disk.full and bytes(data).startswith(self._disk.stops):
            self._disk.full = True
            if self._disk.after:
                return super().write(data[: self._disk.after])
        if self._disk.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def on(disk: Disk, run: RunDirectory) -> RunDirectory:
    """Return the same run on another disk."""
    return RunDirectory(P5Cfg(output_dir=str(run.root)), disk=disk)


@contextlib.contextmanager
def lived(script: Iterable[tuple[str, int]] = (), *, control_lines: bool = True) -> Iterator[Life]:
    """Let a script happen to a run of its own; leave no file behind."""
    with tempfile.TemporaryDirectory(prefix="aegir-") as directory:
        life = Life(RunDirectory.at(directory), control_lines=control_lines)
        for deed in script:
            act(life, deed)
        yield life
        life.kill()


deeds = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(0, 4)),
        st.tuples(st.just("save"), st.just(0)),
        st.tuples(st.sampled_from(["crash", "crash unsealed"]), st.integers(0, 40)),
        st.tuples(st.just("rewind"), st.integers(0, 5)),
    ),
    max_size=14,
)
"""A script of what happens to a run."""


TORN = b'{"step":9,"token_index":1,"layer_index":0,"t'


def act(life: Life, deed: tuple[str, int]) -> None:
    """Let one thing of a script happen."""
    kind, number = deed
    if kind == "step":
        life.record_step(number)
    elif kind == "save" and life.step and f"checkpoint-{life.step}" not in life.saved:
        life.save()
    elif kind == "crash unsealed" and life.step and not life.was_sealed(life.step):
        name = life.save_unsealed()
        life.kill(torn=TORN[:number])
        life.resume(name)
    elif kind == "crash":
        life.kill(torn=TORN[:number])
        life.resume(max(life.saved, key=lambda name: life.saved[name], default=None))
    elif kind == "rewind":
        life.kill()
        choices: list[str | None] = [None, *life.saved]
        life.resume(choices[number % len(choices)])


def attempts(*sinks: JournalSink) -> list[int]:
    """Open journals in order; return the attempt of each."""
    found = []
    for sink in sinks:
        drive(sink.open())
        assert sink._chain is not None
        found.append(sink._chain.attempt)
    return found


def descriptors() -> int:
    """Return how many files this process has open."""
    return len([*Path("/proc/self/fd").iterdir()])


def drain(source: RunSource) -> list[Delivery]:
    """Return everything that a source has to say now."""
    found: list[Delivery] = []
    while deliveries := source.poll():
        found += deliveries
    return found


def records_in(deliveries: Iterable[Delivery]) -> list[SAELogRecord]:
    """Return the SAE records among deliveries, decoded."""
    return [
        codec.decode(record, SAELogRecord)
        for delivery in deliveries
        if isinstance(delivery, Chunk)
        for record in delivery.records
    ]


def cursors_in(deliveries: Iterable[Delivery]) -> list[str]:
    """Return the cursor behind every record among deliveries."""
    return [c for d in deliveries if isinstance(d, Chunk) for c in d.cursors()]
