"""Kills a recording process again and again, holding what it leaves against an oracle.

python -m system.killing RUN SEED KILLS prints what happened, as JSON. Run in a process of its own
without threads, so that forking is cheap and safe.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
import traceback
from typing import NoReturn

import msgspec

from aegir_stream.layout import RunDirectory
from system.killed import Killed, Word
from system.oracle import Oracle, Promises, Record

SERIALS_A_LIFE = 1_000_000
PATIENCE_S = 30.0
FULL_LOOK_EVERY = 10
TEARING = 0.25
"""How often the kill is made to have torn a line: by chance it does so once in a hundred times."""


class Report(msgspec.Struct):
    """What happened in the loop, and what the run must hold after it.

    Attributes:
        kills: processes killed.
        counts: how often a kill hit what.
        everything: records of every attempt, by stream.
        surviving: records of the surviving lineage, by stream.
        seconds: how long it took.
    """

    kills: int
    counts: dict[str, int]
    everything: dict[str, list[Record]]
    surviving: dict[str, list[Record]]
    seconds: float


class Process:
    """A forked process that records, and the pipe through which it says what it does.

    Args:
        run: the run directory.
        rng: what it does, and when.
        serial: number of its first record.
        continues: checkpoint that it resumes from.
        steps: end the run in order after so many; `None` to go on until killed.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        rng: random.Random,
        serial: int,
        continues: str | None,
        steps: int | None = None,
    ) -> None:
        self.promises = Promises()
        self._rest = b""
        self._pipe, writing = os.pipe()
        self._id = os.fork()
        if not self._id:
            _live(run, pipe=writing, rng=rng, serial=serial, continues=continues, steps=steps)
        os.close(writing)

    def hear(self, *, words: int) -> None:
        """Return when so many words were heard."""
        deadline = time.monotonic() + PATIENCE_S
        while words > 0:
            ready, _, _ = select.select([self._pipe], [], [], deadline - time.monotonic())
            heard = self._hear_some() if ready else 0
            assert heard or self.promises.dying, "the process is stuck or died by itself"
            words = words - heard if heard else 0

    def pause(self, seconds: float) -> None:
        """Let it run on, deaf to what it says: the moment of the kill is left to chance."""
        select.select([], [], [], seconds)

    def kill(self) -> None:
        """Kill it, and hear what it said before."""
        os.kill(self._id, signal.SIGKILL)
        assert self.end() == -signal.SIGKILL, "the process ended by itself"

    def end(self) -> int:
        """Hear all that it says and return its exit code."""
        while self._hear_some():
            pass
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self._id, 0)[1])

    def _hear_some(self) -> int:
        """Take in a piece of what is said; return how many words ended in it, at least 1."""
        piece = os.read(self._pipe, 1 << 16)
        *words, self._rest = (self._rest + piece).split(b"\n")
        for word in words:
            self.promises.hear(msgspec.json.decode(word, type=Word))
        return max(len(words), 1) if piece else 0


def _live(
    run: RunDirectory,
    *,
    pipe: int,
    rng: random.Random,
    serial: int,
    continues: str | None,
    steps: int | None,
) -> NoReturn:
    try:
        life = Killed(
            run, rng=rng, pipe=pipe, serial=serial, continues=continues, mortal=steps is None
        )
        life.go_on(steps=steps)
        life.finish()
    except BaseException:  # noqa: BLE001 - a forked child never returns into its parent's code
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Loop:
    """Starts processes on one run, kills each, and judges what it leaves.

    Args:
        run: the run directory.
        seed: of everything that is random but the exact moment of a kill.
    """

    def __init__(self, run: RunDirectory, *, seed: int) -> None:
        self._run = run
        self._rng = random.Random(seed)  # noqa: S311 - a seeded test
        self.oracle = Oracle(run)
        self.lives = 0
        self.kills = 0

    def kill_one(self) -> None:
        """Let a process live for a while, kill it, and judge what it leaves."""
        continues = self._resume_from()
        process = self._start(continues)
        words = self._rng.choice([0, 0, 1, 2, 4, 8, 16])
        process.hear(words=words)
        process.pause(self._rng.uniform(0, 0.003 if words else 0.03))
        process.kill()
        self.kills += 1
        if self._rng.random() < TEARING:
            self.oracle.tear(self._rng)
        self.oracle.counts["killed before it was open"] += not process.promises.opened
        self.oracle.judge(process.promises, continues=continues)

    def finish(self) -> None:
        """Let a last process end the run in order."""
        continues = self._resume_from()
        process = self._start(continues, steps=5)
        assert process.end() == 0
        self.oracle.judge(process.promises, continues=continues)

    def _start(self, continues: str | None, *, steps: int | None = None) -> Process:
        self.lives += 1
        return Process(
            self._run,
            rng=random.Random(self._rng.random()),  # noqa: S311 - likewise
            serial=self.lives * SERIALS_A_LIFE,
            continues=continues,
            steps=steps,
        )

    def _resume_from(self) -> str | None:
        """Choose the newest checkpoint, sealed or not, now and then an older one or none."""
        standing = (n for n in self.oracle.checkpoints if (self._run.root / n).is_dir())
        saved = sorted(standing, key=self.oracle.checkpoints.__getitem__)
        luck = self._rng.random()
        if not saved or luck < 0.03:
            return None
        return self._rng.choice(saved) if luck < 0.15 else saved[-1]


def main(run: RunDirectory, *, seed: int, kills: int) -> Report:
    """Kill so many processes, then let one end the run."""
    began = time.monotonic()
    loop = Loop(run, seed=seed)
    while loop.kills < kills:
        loop.kill_one()
        if loop.kills % FULL_LOOK_EVERY == 0:
            loop.oracle.look_afresh()
    loop.finish()
    oracle = loop.oracle
    oracle.look_afresh()
    oracle.count_torn()
    return Report(
        kills=loop.kills,
        counts=dict(oracle.counts),
        everything=oracle.everything,
        surviving=oracle.surviving,
        seconds=time.monotonic() - began,
    )


if __name__ == "__main__":
    report = main(RunDirectory.at(sys.argv[1]), seed=int(sys.argv[2]), kills=int(sys.argv[3]))
    sys.stdout.buffer.write(msgspec.json.encode(report))
