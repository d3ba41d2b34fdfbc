"""The rounds of a soak: lives that end badly, readers that live on, and a reckoning."""

from __future__ import annotations

import random
import select
import time
from pathlib import Path

import msgspec

from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events
from soak.oracle import (
    SERIALS_A_LIFE,
    Files,
    Lives,
    SoakError,
    Standing,
    Truth,
    judge,
    truth_of,
)
from soak.processes import PATIENCE_S, Process
from soak.reader import KINDS, SUBSCRIBERS, Heard
from soak.trainer import Life, Word

GROWTH_MIB = 24.0
"""How much a reader's memory may grow after it has warmed up, over all rounds."""

WARM_UP_ROUNDS = 2
SPARE_DESCRIPTORS = 3


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided about one life before it is known how its predecessors ended.

    Attributes:
        seed: of what the life decides by itself.
        words: how many words it says before it is killed; `None`: it ends in order.
        moment_s: how long it goes on after the last of them.
        back: which of its checkpoints it resumes from, counted from the newest; `None` for none.
        full_after: step behind which its disk is full for a while.
        steps: steps that it takes if it ends in order.
    """

    seed: int
    words: int | None
    moment_s: float
    back: int | None
    full_after: int | None
    steps: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one round was."""

    number: int
    lives: int
    kills: int
    records: int
    surviving: int
    lost: int
    resident_mib: float
    descriptors: int
    seconds: float

    def __str__(self) -> str:
        """Return the round as one line."""
        return (
            f"round {self.number:3}: {self.lives} lives, {self.kills} killed; {self.records:7} "
            f"records, {self.surviving:7} survive, {self.lost:5} told as lost; readers "
            f"{self.resident_mib:.0f} MiB, {self.descriptors} descriptors at most; "
            f"{self.seconds:.1f} s"
        )


def plan(seed: int, number: int) -> list[Plan]:
    """Return the lives of a round. The same seed and number give the same."""
    decide = random.Random(f"{seed}/{number}")  # noqa: S311 - decisions, not secrets
    plans = [_life(decide) for _ in range(decide.randint(3, 6))]
    # The disk is full in one of them, which ends in order: then nothing is left untold.
    full = msgspec.structs.replace(_life(decide), words=None, full_after=decide.randint(1, 6))
    plans.insert(decide.randint(0, len(plans)), full)
    return plans


def _life(decide: random.Random) -> Plan:
    return Plan(
        seed=decide.getrandbits(32),
        words=decide.choice([0, 1, 3, 8, 20, 40, 40, None]),
        moment_s=decide.uniform(0, 0.004),
        back=decide.choice([0, 0, 0, 0, 0, 0, 1, 1, 1, None]),
        full_after=None,
        steps=decide.randint(12, 30),
    )


class Soak:
    """A run, the lives that write it, and the readers that follow it through all rounds.

    Args:
        root: the run directory.
        seed: of everything that is decided.
    """

    def __init__(self, root: Path, *, seed: int) -> None:
        self._run = RunDirectory.at(root)
        self._seed = seed
        self._files = Files(root)
        self._lives = Lives()
        self._count = 0
        self._warm: dict[str, tuple[float, int]] = {}
        self._readers = {
            kind: Process("soak.reader", kind, root, str(seed + number), kind=Heard)
            for number, kind in enumerate(KINDS)
        }
        self._standing = {
            (kind, by): Standing()
            for kind in KINDS
            for by in range(SUBSCRIBERS if kind == "hub" else 1)
        }

    def close(self) -> None:
        """End the readers."""
        for reader in self._readers.values():
            reader.close()

    def round(self, number: int) -> Result:
        """Let a round happen and reckon up.

        Raises:
            SoakError: something is not as it must be.
        """
        started = time.monotonic()
        plans = plan(self._seed, number)
        kills = sum(self._live(each) for each in plans)
        truth = truth_of(self._files.segments())
        judge(truth, self._lives)
        self._await_readers(truth)
        self._replay(truth)
        resident_mib, descriptors = self._weigh(number)
        return Result(
            number=number,
            lives=len(plans),
            kills=kills,
            records=len(truth.everything),
            surviving=len(truth.surviving),
            lost=truth.lost,
            resident_mib=resident_mib,
            descriptors=descriptors,
            seconds=time.monotonic() - started,
        )

    # -- lives -------------------------------------------------------------------------------------

    def _live(self, plan: Plan) -> bool:
        """Let a life happen; tell whether it was killed."""
        self._count += 1
        life = Life(
            seed=plan.seed,
            serial=self._count * SERIALS_A_LIFE,
            continues=self._resumed_from(plan.back),
            steps=plan.steps if plan.words is None else None,
            full_after=plan.full_after,
        )
        trainer = Process(
            "soak.trainer", self._run.root, msgspec.json.encode(life).decode(), kind=Word
        )
        words: list[Word] = []
        if plan.words is not None:
            while len(words) < plan.words and not trainer.ended:
                words += trainer.hear()
                self._listen()
            select.select([], [], [], plan.moment_s)  # on to a moment that is left to chance
            trainer.kill()
        more, code = trainer.end()
        trainer.close()
        self._lives.take(self._count, [*words, *more])
        if plan.words is None and code != 0:
            raise SoakError(f"life {self._count} ended with {code}")
        return plan.words is not None

    def _resumed_from(self, back: int | None) -> str | None:
        if back is None:
            return None
        # What an earlier resume rewound is not resumed from: a follower that took it back could
        # not know that it stands again.
        standing = truth_of(self._files.segments()).checkpoints
        there = {checkpoint.name for checkpoint in self._run.checkpoints()}
        saved = [name for _, name in standing if name in there]
        return saved[max(-len(saved), -1 - back)] if saved else None

    # -- readers -----------------------------------------------------------------------------------

    def _listen(self, *, wait_s: float = 0.0) -> None:
        """Take in what readers say, so that none of them ever waits for us."""
        ready, _, _ = select.select(list(self._readers.values()), [], [], wait_s)
        for kind, reader in self._readers.items():
            if reader in ready:
                for heard in reader.hear(wait_s=0):
                    self._standing[kind, heard.by].hear(heard)
                if reader.ended:
                    raise SoakError(f"the reader {kind} has ended by itself")

    def _await_readers(self, truth: Truth) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while differences := self._differences(truth):
            if time.monotonic() > deadline:
                raise SoakError("; ".join(differences))
            self._listen(wait_s=0.05)

    def _differences(self, truth: Truth) -> list[str]:
        """Return what the readers lack, or have too much of."""
        found = []
        for (kind, by), standing in self._standing.items():
            if standing.held != truth.surviving:
                found.append(f"{kind} {by} holds {_differ(standing.held, truth.surviving)}")
            if len(set(standing.heard)) != len(standing.heard):
                found.append(f"{kind} {by} heard records twice")
            if kind in {"steady", "slow"} and standing.heard != truth.everything:
                found.append(f"{kind} {by} heard {_differ(standing.heard, truth.everything)}")
            if kind in {"steady", "slow"} and standing.lost != truth.lost:
                found.append(f"{kind} {by} was told of {standing.lost} lost, of {truth.lost}")
        return found

    def _replay(self, truth: Truth) -> None:
        """Read the run afresh, as anyone would."""
        events = [(e.step, e.completion) for e in read_events(self._run, "sae_features")]
        if events != truth.surviving:
            raise SoakError(f"a replay finds {_differ(events, truth.surviving)}")

    def _weigh(self, number: int) -> tuple[float, int]:
        """Return what the largest reader needs, after holding each against its warmed-up self."""
        needs = {kind: (r.resident_mib(), r.descriptors()) for kind, r in self._readers.items()}
        if number <= WARM_UP_ROUNDS:
            self._warm = needs
        for kind, (resident_mib, descriptors) in needs.items():
            warm_mib, warm_descriptors = self._warm[kind]
            if resident_mib > warm_mib + GROWTH_MIB:
                raise SoakError(f"{kind} grew from {warm_mib:.0f} to {resident_mib:.0f} MiB")
            if descriptors > warm_descriptors + SPARE_DESCRIPTORS:
                raise SoakError(f"{kind} has {descriptors} files open, {warm_descriptors} at first")
        return max(mib for mib, _ in needs.values()), max(n for _, n in needs.values())


def _differ(found: list[tuple[int, int]], expected: list[tuple[int, int]]) -> str:
    """Say where two lists of records part."""
    pairs = enumerate(zip(found, expected, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(found), len(expected)))
    return (
        f"{len(found)} records, not {len(expected)}; from {at} on {found[at : at + 3]} "
        f"instead of {expected[at : at + 3]}"
    )
