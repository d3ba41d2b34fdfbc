"""A log under everything that can happen to it, in any order (hypothesis, stateful)."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aegir_stream.testing import Fault, Killed, SimulatedMachine, SimulatedSystem
from core.follower import Following
from core.simulated import (
    RECORDED,
    ROOT,
    Attempt,
    SimulatedRun,
    check_survivors,
)

streams = st.sampled_from(RECORDED)
errors = st.sampled_from([errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
soon = st.integers(0, 40)


class LogMachine(RuleBasedStateMachine):
    """A trainer, others who write, and readers, on a machine whose disk has bad days.

    A power cut ends every process. Readers come back with their cursors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.machine = SimulatedMachine()
        self.run = SimulatedRun(self.machine)
        self.strangers: list[Attempt] = []
        self.children: list[SimulatedSystem] = []
        self.readers: list[Following] = []
        self.looks = [self.machine.look()]
        self.cut = False
        self.mixed = False

    @initialize(durability=st.sampled_from(["os", "interval", "checkpoint"]))
    def choose_durability(self, durability: str) -> None:
        """A run has one durability from its first attempt on."""
        self.run.options["durability"] = durability

    # -- the trainer -------------------------------------------------------------------------------

    def runs(self) -> bool:
        """Tell whether the trainer runs."""
        return bool(self.run.launches) and self.run.now.running

    @contextlib.contextmanager
    def mortal(self) -> Iterator[None]:
        """Let the trainer die where it stands, of what is due at one of its calls."""
        with contextlib.suppress(Killed):
            yield

    @precondition(lambda self: not self.runs())
    @rule(choice=st.integers(0, 9))
    def begin(self, choice: int) -> None:
        """Launch the trainer from a checkpoint, or from scratch."""
        checkpoints: list[str | None] = [*reversed(self.run.kept), None]
        # What a child still holds looks like another rank of the same launch.
        self.mixed = self.mixed or bool(self.children)
        self.run.begin(checkpoints[choice % len(checkpoints)])

    @precondition(runs)
    @rule(size=st.integers(1, 3))
    def step(self, size: int) -> None:
        """Take a step."""
        with self.mortal():
            self.run.take_step(size)

    @precondition(lambda self: self.runs() and self.run.unsaved)
    @rule(stream=streams)
    def emit(self, stream: str) -> None:
        """Record something more of this step."""
        with self.mortal():
            self.run.emit(stream, 1)

    @precondition(lambda self: self.runs() and self.run.unsaved)
    @rule()
    def save(self) -> None:
        """Save a checkpoint."""
        with self.mortal():
            self.run.save()

    @precondition(lambda self: len(self.run.kept) > 1)
    @rule()
    def rotate(self) -> None:
        """Delete the oldest checkpoint."""
        oldest = next(iter(self.run.kept))
        del self.run.kept[oldest]
        self.machine.remove(ROOT / oldest)

    @precondition(runs)
    @rule()
    def flush(self) -> None:
        """Have what was written made as safe as it is promised."""
        with self.mortal():
            self.run.now.recorder.flush()

    @precondition(runs)
    @rule()
    def close(self) -> None:
        """End the training."""
        with self.mortal():
            self.run.close()

    # -- others ------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.strangers) < 2)
    @rule()
    def a_second_writer_comes(self) -> None:
        """Another process writes as the same rank."""
        self.strangers.append(self.run.stranger())
        self.mixed = True

    @precondition(lambda self: self.strangers)
    @rule(stream=streams)
    def the_second_writer_writes(self, stream: str) -> None:
        """It records with the first one's step."""
        with self.mortal():
            self.run.emit(stream, 1, by=self.strangers[-1])

    @precondition(lambda self: self.strangers)
    @rule(closes=st.booleans())
    def the_second_writer_goes(self, *, closes: bool) -> None:
        """It ends, or is killed."""
        stranger = self.strangers.pop()
        with self.mortal():
            if closes:
                stranger.close()
        stranger.process.kill()

    @precondition(runs)
    @rule()
    def fork(self) -> None:
        """A child process inherits what the trainer has open."""
        self.children.append(self.run.now.process.fork())

    @precondition(lambda self: self.children)
    @rule()
    def a_child_ends(self) -> None:
        """The last one who holds a file lets go of it."""
        self.children.pop().kill()

    # -- bad days ----------------------------------------------------------------------------------

    @precondition(runs)
    @rule()
    def kill(self) -> None:
        """End the trainer as SIGKILL does."""
        self.run.kill()

    @precondition(runs)
    @rule(calls=soon, taken=st.integers(1, 200))
    def kill_soon(self, calls: int, taken: int) -> None:
        """Kill it in the middle of what it does, perhaps halfway through a line."""
        process = self.run.now.process
        first = len(self.machine.calls) + calls
        self._fail(process, kinds=frozenset({"write"}), first=first - 1, taken=taken)
        self._fail(process, first=first, meanwhile=process.kill)

    @rule(left=st.data(), keeps_sizes=st.booleans())
    def power_cut(self, left: Any, *, keeps_sizes: bool) -> None:
        """Lose what is not on the medium, or some of it."""
        self.machine.power_cut(
            lambda least, most: left.draw(st.integers(least, most)), keeps_sizes=keeps_sizes
        )
        self.machine.mend()
        self.cut, self.strangers, self.children = True, [], []
        for attempt in self.run.attempts:
            attempt.cut = True
        for reader in self.readers:
            reader.come_back(excused=True)

    @precondition(runs)
    @rule(error=errors, calls=soon, times=st.integers(1, 20))
    def bad_calls(self, error: int, calls: int, times: int) -> None:
        """Have calls of the trainer fail, soon, for a while."""
        first = len(self.machine.calls) + calls
        self._fail(self.run.now.process, error=error, first=first, times=times)

    @precondition(runs)
    @rule(taken=st.integers(1, 300), calls=soon)
    def short_write(self, taken: int, calls: int) -> None:
        """Have a write take only a part."""
        first = len(self.machine.calls) + calls
        self._fail(self.run.now.process, kinds=frozenset({"write"}), first=first, taken=taken)

    @precondition(runs)
    @rule()
    def bad_sync(self) -> None:
        """Have the next sync of content fail, and forget what it should have written."""
        kinds = frozenset({"sync_data"})
        self._fail(self.run.now.process, kinds=kinds, error=errno.EIO)

    @rule(room=st.integers(0, 2000))
    def full_disk(self, room: int) -> None:
        """Leave so many bytes on the disk."""
        self.machine.capacity_bytes = self.machine.used_bytes() + room

    @rule()
    def mend(self) -> None:
        """Have all go well again."""
        self.machine.mend()

    def _fail(self, process: SimulatedSystem, **fault: Any) -> None:
        self.machine.fail(Fault(process=process.number, **fault))

    # -- readers -----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.readers) < 4)
    @rule(
        stream=streams,
        start=st.sampled_from(["start", "start", "checkpoint", "now"]),
        level=st.sampled_from(["live", "committed"]),
    )
    def a_reader_comes(self, stream: str, start: Any, level: Any) -> None:
        """Begin to read."""
        self.readers.append(Following(self.run, stream, start=start, level=level))

    @precondition(lambda self: self.readers)
    @rule(index=st.integers(0, 3))
    def poll(self, index: int) -> None:
        """Read some."""
        self.readers[index % len(self.readers)].poll()

    @precondition(lambda self: self.readers)
    @rule(index=st.integers(0, 3))
    def a_reader_comes_back(self, index: int) -> None:
        """Go on from a cursor, in another process."""
        self.readers[index % len(self.readers)].come_back()

    @precondition(lambda self: self.readers)
    @rule(index=st.integers(0, 3), error=errors, calls=st.integers(0, 5))
    def a_reader_cannot_read(self, index: int, error: int, calls: int) -> None:
        """Have a call of a reader fail."""
        process = self.readers[index % len(self.readers)].process
        self._fail(process, error=error, first=len(self.machine.calls) + calls)

    @rule(bounds_reads=st.booleans())
    def look(self, *, bounds_reads: bool) -> None:
        """Remember sizes and names."""
        self.looks = [*self.looks[-3:], self.machine.look(bounds_reads=bounds_reads)]

    @precondition(lambda self: self.readers)
    @rule(index=st.integers(0, 3), look=st.integers(0, 3))
    def a_reader_sees_old_attributes(self, index: int, look: int) -> None:
        """Have a reader believe in the sizes and names of an earlier moment."""
        process = self.readers[index % len(self.readers)].process
        process.believed = self.looks[look % len(self.looks)]

    @precondition(lambda self: self.readers)
    @rule(index=st.integers(0, 3))
    def a_reader_sees_the_truth(self, index: int) -> None:
        """Have a reader ask the server again."""
        self.readers[index % len(self.readers)].process.believed = None

    # -- laws --------------------------------------------------------------------------------------

    @invariant()
    def readers_hold_nothing_open(self) -> None:
        """A reader has nothing open between its calls."""
        assert not [path for reader in self.readers for path in reader.process.descriptors]

    def teardown(self) -> None:
        """Mend everything, finish the run, and check the laws of the log."""
        self.machine.mend()
        for stranger in self.strangers:
            stranger.close()
        for child in self.children:
            child.kill()
        if not self.runs():
            self.run.resume()
        self.run.take_step()
        self.run.close()
        self.check_the_log()
        for reader in self.readers:
            reader.check_complete()

    def check_the_log(self) -> None:
        """Check what a reader of everything finds."""
        run = self.run
        found = run.read()
        # The recorder counts a line that was cut as written: its rest is due, unless it dies first.
        torn = run.torn(found)
        for attempt in run.attempts:
            assert found.of(attempt) <= attempt.count()
            assert attempt.cut or found.of(attempt) >= attempt.written() - torn
        assert found.lost() <= sum(attempt.dropped() for attempt in run.attempts) + torn
        if not self.cut and not self.mixed:
            check_survivors(run, found)


LogMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=30, deadline=None, print_blob=True
)
TestLogMachine = LogMachine.TestCase
