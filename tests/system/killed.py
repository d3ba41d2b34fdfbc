"""The process that is killed: records steps, saves checkpoints, and says what it was promised.

It writes through a `JournalSink` of its own or through a `Recorder`. Before every write it says
what it tries, and when the write has returned, that it was kept.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from aegir_stream import codec
from aegir_stream.batch import Events
from aegir_stream.events import Completion, DataEvent, SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.opening import step_of
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink
from aegir_stream.typing import Append
from core.runs import drive

STREAMS = ("sae_features", "completions")
KEPT_CHECKPOINTS = 4
UNSEALED = 0.2
"""How often it dies by itself between saving a checkpoint and sealing it: chance seldom does."""
_LARGE = 400
"""Records of a step now and then: a kill tears a line only inside a large write."""


class Word(msgspec.Struct, omit_defaults=True):
    """What the process says: that it tries an append, or a seal, or that all it tried was kept.

    Attributes:
        said: `open`, `try`, `save`, `kept`, or `dying` where it kills itself.
        stream: stream of an append that is tried.
        step: its step.
        serials: first serial number of its records, and the one behind the last.
        checkpoint: name of the checkpoint that is to be sealed.
    """

    said: str
    stream: str = ""
    step: int = 0
    serials: tuple[int, int] = (0, 0)
    checkpoint: str = ""


class Journal(Protocol):
    """What the process writes to; what it returns from is kept."""

    def append(self, stream: str, events: Sequence[DataEvent], step: int) -> bool:
        """Append; tell whether it is already kept."""

    def seal(self, checkpoint: str, step: int) -> None:
        """Seal a checkpoint."""

    def sync(self) -> None:
        """Return when everything appended is kept."""

    def finish(self) -> None:
        """End the run."""


class Direct:
    """A sink without a recorder in front."""

    def __init__(self, sink: JournalSink) -> None:
        self._sink = sink
        drive(sink.open())

    def append(self, stream: str, events: Sequence[DataEvent], step: int) -> bool:
        """Append; it is kept when this returns."""
        data = b"".join(map(codec.encode, events))
        drive(self._sink.write(Append(stream=stream, data=data, records=len(events), step=step)))
        return True

    def seal(self, checkpoint: str, step: int) -> None:
        """Seal a checkpoint."""
        drive(self._sink.seal(checkpoint=checkpoint, step=step))

    def sync(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """End the run."""
        drive(self._sink.aclose())


class Queued:
    """A recorder: what was emitted is kept when a flush has returned."""

    def __init__(self, sink: JournalSink) -> None:
        self._recorder = Recorder(sink)
        self.sync()

    def append(self, stream: str, events: Sequence[DataEvent], step: int) -> bool:
        """Emit; it is not kept yet."""
        assert self._recorder.emit(Events(stream, tuple(events), step=step))
        return False

    def seal(self, checkpoint: str, step: int) -> None:
        """Seal a checkpoint."""
        assert self._recorder.seal(checkpoint=checkpoint, step=step), self._recorder.statistics()

    def sync(self) -> None:
        """Flush."""
        assert self._recorder.flush()
        assert self._recorder.statistics().errors == 0, self._recorder.statistics()

    def finish(self) -> None:
        """End the run."""
        assert self._recorder.close()


class Killed:
    """The life of one such process, up to the moment that it is killed.

    Args:
        run: the run directory.
        rng: decides sizes and when checkpoints are saved.
        pipe: descriptor that `Word`s are written to.
        serial: number of its first record.
        continues: checkpoint that it resumes from.
        mortal: whether it may kill itself.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        rng: random.Random,
        pipe: int,
        serial: int,
        continues: str | None,
        mortal: bool,
    ) -> None:
        self._mortal = mortal
        self._root = run.root
        self._rng = rng
        self._pipe = pipe
        self._serial = serial
        self._step = step_of(continues) or 0
        kinds: list[Callable[[JournalSink], Journal]] = [Direct, Direct, Queued]
        self._journal = rng.choice(kinds)(JournalSink(run, continues=continues))
        self.say(Word("open"))

    def say(self, word: Word) -> None:
        """Say something; what is said before the kill is heard."""
        os.write(self._pipe, msgspec.json.encode(word) + b"\n")

    def go_on(self, *, steps: int | None = None) -> None:
        """Take steps until killed, or so many."""
        while steps is None or steps > 0:
            steps = None if steps is None else steps - 1
            self.step()

    def step(self) -> None:
        """Record a step; save a checkpoint now and then."""
        self._step += 1
        for stream in STREAMS:
            size = _LARGE if self._rng.random() < 0.1 else self._rng.randint(1, 12)
            self._append(stream, size)
        if self._rng.random() < 0.3:
            self._journal.sync()
            self.say(Word("kept"))
            self._save(f"checkpoint-{self._step}")

    def finish(self) -> None:
        """End the run in order."""
        self._journal.finish()
        self.say(Word("kept"))

    def _append(self, stream: str, size: int) -> None:
        first, self._serial = self._serial, self._serial + size
        self.say(Word("try", stream, self._step, (first, self._serial)))
        events = [event(stream, self._step, serial) for serial in range(first, self._serial)]
        if not self._journal.append(stream, events, self._step) and self._rng.random() < 0.5:
            return
        self._journal.sync()
        self.say(Word("kept"))

    def _save(self, checkpoint: str) -> None:
        directory = Path(self._root, checkpoint)
        directory.mkdir(exist_ok=True)
        (directory / "trainer_state.json").write_text("{}")
        self.say(Word("save", checkpoint=checkpoint, step=self._step))
        if self._mortal and self._rng.random() < UNSEALED:
            self.say(Word("dying"))
            os.kill(os.getpid(), signal.SIGKILL)
        self._journal.seal(checkpoint, self._step)
        self.say(Word("kept"))
        self._rotate()

    def _rotate(self) -> None:
        """Keep the newest checkpoints only, as `save_total_limit` does."""
        names = (path.name for path in self._root.glob("checkpoint-*"))
        for name in sorted(names, key=lambda name: step_of(name) or 0)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(self._root / name)


def event(stream: str, step: int, serial: int) -> DataEvent:
    """Return the record that bears a serial number."""
    if stream == "completions":
        return Completion(
            step=step,
            completion=serial,
            rank=0,
            group=0,
            rewards={},
            reward=0.5,
            advantage=0.25,
            length=serial % 97,
            terminated=True,
        )
    return SAELogRecord(
        step=step,
        token_index=serial % 89,
        layer_index=serial % 3,
        top_feature_indices=tuple(range(serial, serial + 16)),
        top_feature_activations=tuple(serial / k for k in range(1, 17)),
        reconstruction_loss=serial / 7,
        completion=serial,
    )
