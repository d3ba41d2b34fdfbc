"""One life of a trainer: python -m soak.trainer RUN LIFE, where LIFE is JSON.

It says on standard output what it tries before it tries it, and what became of it afterwards. It
goes on until it is killed, or has taken its steps.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
from pathlib import Path

import msgspec

from aegir_stream import codec
from aegir_stream.errors import WriteLostError
from aegir_stream.events import SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.opening import step_of
from aegir_stream.sinks import JournalSink
from aegir_stream.typing import Append
from core.runs import drive

KEPT_CHECKPOINTS = 2
_LARGE = 600
"""Records of a step now and then: only within a large write a kill or a full disk tears a line."""


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided about a life before it begins.

    Attributes:
        seed: of everything that it decides by itself.
        serial: number of its first record.
        continues: checkpoint that it resumes from.
        steps: steps after which it ends in order; `None` to go on until killed.
        full_after: step behind which the disk is full, and `full_steps` later free again.
        full_steps: how many steps are taken on the full disk.
    """

    seed: int
    serial: int
    continues: str | None = None
    steps: int | None = None
    full_after: int | None = None
    full_steps: int = 3


class Word(msgspec.Struct, omit_defaults=True):
    """What a life says.

    Attributes:
        said: `open`; `try` an append, which is `kept` or, but for a part, `lost`; `save`, and
            when that is done, `saved`; `settled`: a write after a loss has succeeded.
        serials: first serial number of an append, and the one behind the last.
        lost: how many records of it the disk did not take.
        checkpoint: name of a checkpoint.
    """

    said: str
    serials: tuple[int, int] = (0, 0)
    lost: int = 0
    checkpoint: str = ""


class Trainer:
    """Takes steps, saves checkpoints and lets old ones go.

    Args:
        run: the run directory.
        life: what is decided.
    """

    def __init__(self, run: RunDirectory, life: Life) -> None:
        self._run = run
        self._life = life
        self._random = random.Random(life.seed)  # noqa: S311 - decisions, not secrets
        self._serial = life.serial
        self._step = step_of(life.continues) or 0
        self._in_trouble = False
        self._sink = JournalSink(run, continues=life.continues)
        drive(self._sink.open())
        _say(Word("open"))

    def live(self) -> None:
        """Go on until killed, or for the steps of this life."""
        taken = 0
        while self._life.steps is None or taken < self._life.steps:
            taken += 1
            self._fill_or_free_the_disk(taken)
            self._take_step()
            if self._random.random() < 0.25 and not self._in_trouble:
                self._save()
        drive(self._sink.aclose(status="stopped"))

    def _take_step(self) -> None:
        self._step += 1
        size = _LARGE if self._random.random() < 0.15 else self._random.randint(1, 40)
        first, self._serial = self._serial, self._serial + size
        _say(Word("try", serials=(first, self._serial)))
        data = b"".join(codec.encode(record(self._step, n)) for n in range(first, self._serial))
        append = Append(stream="sae_features", data=data, records=size, step=self._step)
        try:
            drive(self._sink.write(append))
        except WriteLostError as error:
            self._in_trouble = True
            _say(Word("lost", lost=error.records_lost))
        else:
            if self._in_trouble:
                self._in_trouble = False
                _say(Word("settled"))
            _say(Word("kept"))

    def _save(self) -> None:
        name = f"checkpoint-{self._step}"
        (self._run.root / name).mkdir(exist_ok=True)
        _say(Word("save", checkpoint=name))
        drive(self._sink.seal(checkpoint=name, step=self._step))
        _say(Word("saved", checkpoint=name))
        for old in self._run.checkpoints()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old.path)

    def _fill_or_free_the_disk(self, taken: int) -> None:
        if self._life.full_after is None:
            return
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if taken == self._life.full_after:
            size = self._run.live("sae_features").stat().st_size
            room = self._random.randint(0, 6000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
        elif taken == self._life.full_after + self._life.full_steps:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def record(step: int, serial: int) -> SAELogRecord:
    """Return the record that bears a serial number."""
    return SAELogRecord(
        step=step,
        token_index=serial % 89,
        layer_index=serial % 3,
        top_feature_indices=tuple(range(8)),
        top_feature_activations=tuple(serial / k for k in range(1, 9)),
        reconstruction_loss=serial / 7,
        completion=serial,
    )


def _say(word: Word) -> None:
    # Past every buffer: what was said before a kill is heard.
    os.write(1, msgspec.json.encode(word) + b"\n")


if __name__ == "__main__":
    Trainer(RunDirectory.at(Path(sys.argv[1])), msgspec.json.decode(sys.argv[2], type=Life)).live()
