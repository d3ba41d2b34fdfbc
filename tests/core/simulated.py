"""A run on a simulated machine, and what must be true of its log whatever happened to it."""

from __future__ import annotations

import atexit
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from aegir_stream import codec
from aegir_stream.batch import Events
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.config import P5Cfg
from aegir_stream.disk import Disk
from aegir_stream.events import Completion, Corrupt, Gap, SAELogRecord
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.opening import step_of
from aegir_stream.recorder import Recorder
from aegir_stream.replay import read_events
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from aegir_stream.system import System
from aegir_stream.testing import ManualClock, SimulatedMachine, SimulatedSystem, make_record
from aegir_stream.typing import Sealed, Sink
from core.runs import drain, drive

ROOT = Path("/run")
RECORDED = ("sae_features", "completions")

Serials = list[int]


def run_on(system: System) -> RunDirectory:
    """Return the run as a process sees it."""
    return RunDirectory(P5Cfg(output_dir=str(ROOT)), disk=Disk(system))


class SingleThreaded(Recorder):
    """A recorder that does in the calling thread, at once, what its own thread does otherwise.

    So a campaign knows which call is the next, and a process that is killed stops there.
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink, clock=ManualClock())
        # A simulated process that was killed has nothing to close when the tests end.
        atexit.unregister(self._at_exit)

    def _start(self) -> bool:
        return True

    def _wake_up(self) -> None:
        drive(self._work_off())


class Attempt:
    """One launch of the trainer.

    Attributes:
        process: its process.
        recorder: what it records with.
        continues: checkpoint that it resumed from.
        emitted: serials that it recorded, by stream.
        closed: whether it was closed.
        cut: whether the power was cut since it began.
    """

    def __init__(self, process: SimulatedSystem, *, continues: str | None, **options: Any) -> None:
        self.process = process
        self.continues = continues
        self.sink = JournalSink(
            run_on(process), continues=continues, clock=ManualClock(), **options
        )
        self.recorder = SingleThreaded(self.sink)
        self.emitted: dict[str, Serials] = {stream: [] for stream in RECORDED}
        self.closed = False
        self.cut = False

    @property
    def running(self) -> bool:
        """Whether it was neither closed nor killed."""
        return self.process.alive and not self.closed

    def close(self) -> None:
        """End it in good order."""
        self.closed = True
        self.recorder.close()

    def traced(self, stream: str) -> bool:
        """Tell whether it left a word in a stream of what it rewound."""
        return (
            self.sink._chain is not None
            if stream == "sae_features"
            else (stream in self.sink._feeds)
        )

    def count(self) -> int:
        """Return how many records it emitted."""
        return sum(map(len, self.emitted.values()))

    def written(self) -> int:
        """Return how many records the recorder says were written."""
        return self.recorder.statistics().records_written

    def dropped(self) -> int:
        """Return how many records the recorder says are lost."""
        return self.recorder.statistics().records_dropped


class SimulatedRun:
    """A run as its trainer lives it, with a ledger of what it recorded.

    Args:
        machine: where it lives.
        options: of the journal.

    Attributes:
        attempts: all launches, those of strangers included.
        launches: how many of them were the trainer's.
        now: the trainer's last.
        surviving: serials that no resume rewound, by stream.
        kept: checkpoints that can be resumed from, and how many serials survive there.
        sealed: what the recorder answered about them.
        ever_sealed: checkpoints of all attempts that were sealed.
        unclear: whether a resume was from a checkpoint whose seal may have failed, and another
            attempt had sealed one of that name: nobody can tell which of them it was.
        step: the step that was taken last.
    """

    def __init__(self, machine: SimulatedMachine, **options: Any) -> None:
        self.machine = machine
        self.options = options
        self.attempts: list[Attempt] = []
        self.launches = 0
        self.surviving: dict[str, Serials] = {stream: [] for stream in RECORDED}
        self.kept: dict[str, dict[str, int]] = {}
        self.sealed: dict[str, Sealed] = {}
        self.ever_sealed: set[str | None] = set()
        self.unclear = False
        self.step = 0
        self._serial = 0

    # -- life --------------------------------------------------------------------------------------

    @property
    def unsaved(self) -> bool:
        """Whether the step that was taken last has no checkpoint yet."""
        return self.step > 0 and f"checkpoint-{self.step}" not in self.kept

    def begin(self, continues: str | None = None) -> None:
        """Launch the trainer, from scratch or from a checkpoint."""
        kept = self.kept[continues] if continues else {}
        self.surviving = {s: self.surviving[s][: kept.get(s, 0)] for s in RECORDED}
        self.step = step_of(continues) or 0
        self.kept = {c: k for c, k in self.kept.items() if (step_of(c) or 0) <= self.step}
        self.sealed = {c: s for c, s in self.sealed.items() if c in self.kept}
        self.unclear = self.unclear or (
            continues in self.ever_sealed and (continues not in self.sealed)
        )
        self.launches += 1
        self.now = self._launch(continues)

    def resume(self) -> None:
        """Launch the trainer from its last checkpoint."""
        self.begin(next(reversed(self.kept), None))

    def stranger(self) -> Attempt:
        """Launch another process that writes as the same rank."""
        return self._launch(None)

    def take_step(self, size: int = 2) -> None:
        """Take a step that records `size` tokens and one completion."""
        self.step += 1
        self.emit("sae_features", size)
        self.emit("completions", 1)

    def emit(self, stream: str, size: int, *, by: Attempt | None = None) -> None:
        """Record something of this step."""
        serials = range(self._serial + 1, self._serial + size + 1)
        self._serial += size
        events = tuple(event_of(stream, self.step, serial) for serial in serials)
        if by is None:
            self.surviving[stream] += serials
        attempt = by or self.now
        attempt.emitted[stream] += serials
        assert attempt.recorder.emit(Events(stream, events, step=self.step))

    def save(self) -> Sealed | None:
        """Save a checkpoint."""
        name = f"checkpoint-{self.step}"
        self.machine.make_directory(ROOT / name)
        self.kept[name] = {stream: len(serials) for stream, serials in self.surviving.items()}
        sealed = self.now.recorder.seal(checkpoint=name, step=self.step)
        if sealed:
            self.sealed[name] = sealed
            self.ever_sealed.add(name)
        return sealed

    def close(self) -> None:
        """End the training."""
        self.now.close()

    def kill(self) -> None:
        """End the trainer as SIGKILL does."""
        self.now.process.kill()

    def _launch(self, continues: str | None) -> Attempt:
        attempt = Attempt(self.machine.process(), continues=continues, **self.options)
        self.attempts.append(attempt)
        return attempt

    # -- what the log holds ------------------------------------------------------------------------

    def read(self) -> Found:
        """Read everything that the log holds.

        Law: nothing is invented, doubled or out of order within a lane.
        """
        deliveries = {
            stream: drain(
                RunSource(run_on(self.machine.process()), stream, start="start", attempts="all")
            )
            for stream in RECORDED
        }
        serials = {
            stream: {serial for lane in checked(self, stream, told).values() for serial in lane}
            for stream, told in deliveries.items()
        }
        return Found(serials, [delivery for told in deliveries.values() for delivery in told])

    def survivors(self, stream: str) -> Serials:
        """Return the serials of the records that a replay finds."""
        events = read_events(run_on(self.machine.process()), stream)
        return [event.completion for event in events]

    def torn(self, found: Found) -> int:
        """Return how many lines were cut: readers tell of them, or wait for their ends."""
        unfinished = [
            path
            for path, content in self.machine.files().items()
            if path.suffix == ".jsonl" and content and not content.endswith(b"\n")
        ]
        return found.count(Corrupt) + len(unfinished)


class Found(NamedTuple):
    """What a reader of everything was given.

    Attributes:
        serials: of all records, by stream.
        deliveries: all of it.
    """

    serials: dict[str, set[int]]
    deliveries: list[Delivery]

    def of(self, attempt: Attempt) -> int:
        """Return how many records of an attempt were found."""
        mine = attempt.emitted
        return sum(len(self.serials[stream].intersection(mine[stream])) for stream in RECORDED)

    def count(self, kind: type) -> int:
        """Return how many deliveries were of a kind."""
        return sum(isinstance(delivery, kind) for delivery in self.deliveries)

    def lost(self) -> int:
        """Return how many records the log says are lost."""
        return sum(gap.records for gap in self.deliveries if isinstance(gap, Gap))


def event_of(stream: str, step: int, serial: int) -> SAELogRecord | Completion:
    """Return the record of a serial number; the same for the same arguments."""
    if stream == "sae_features":
        record = make_record(step=step, token=serial % 7)
        return msgspec.structs.replace(record, completion=serial)
    return Completion(
        step=step,
        completion=serial,
        rank=0,
        group=serial % 3,
        rewards={"length": 0.5},
        reward=0.5,
        advantage=float(serial),
        length=4,
        terminated=True,
    )


# -- laws -----------------------------------------------------------------------------------------


def checked(run: SimulatedRun, stream: str, deliveries: Iterable[Delivery]) -> dict[str, Serials]:
    """Return the serials among deliveries, by lane, none of them invented, doubled or reordered."""
    emitted = {serial for attempt in run.attempts for serial in attempt.emitted[stream]}
    lanes: dict[str, Serials] = {}
    for delivery in deliveries:
        if isinstance(delivery, Chunk):
            lanes.setdefault(delivery.lane, []).extend(_serials(stream, delivery, emitted))
    assert_in_order(lanes)
    return lanes


def assert_in_order(lanes: dict[str, Serials]) -> None:
    """Check that no record came twice, and none before an earlier one of its lane."""
    for lane, serials in lanes.items():
        assert serials == sorted(serials), f"{lane} is out of order: {serials}"
    found = Counter(serial for serials in lanes.values() for serial in serials)
    assert not [serial for serial, times in found.items() if times > 1], f"doubled: {lanes}"


def check_survivors(run: SimulatedRun, found: Found) -> None:
    """Check that a replay finds nothing that was rewound, in order.

    What the checkpoint that was resumed from is known to hold, and what came after it, it finds.
    Nobody can know what was rewound by an attempt that could not write a word.
    """
    sealed = run.now.continues is None or run.now.continues in run.sealed
    for stream in RECORDED:
        if run.unclear or not all(attempt.traced(stream) for attempt in run.attempts):
            continue
        survivors = run.survivors(stream)
        wanted = [serial for serial in run.surviving[stream] if serial in found.serials[stream]]
        assert is_subsequence(survivors, wanted), (stream, survivors, wanted)
        assert survivors == wanted or not sealed, (stream, survivors, wanted)


def is_subsequence(some: Serials, of: Serials) -> bool:
    """Tell whether a list is what another leaves when elements are taken out."""
    rest = iter(of)
    return all(serial in rest for serial in some)


def _serials(stream: str, chunk: Chunk, emitted: set[int]) -> Iterator[int]:
    for line in chunk.records:
        event = codec.decode(line, STREAMS[stream].kind)
        assert event.completion in emitted, f"invented: {event}"
        assert event == event_of(stream, event.step, event.completion), f"changed: {event}"
        yield event.completion
