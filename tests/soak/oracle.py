"""What the files hold, without the library; what the lives were promised; what the readers said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from soak.reader import Heard
from soak.trainer import Word

SERIALS_A_LIFE = 1_000_000

Record = tuple[int, int]
"""(step, serial number)."""


class SoakError(AssertionError):
    """Something is not as it must be."""


class Segment(msgspec.Struct):
    """One segment, from its bare lines.

    Attributes:
        number: its number.
        attempt: attempt that wrote it.
        continues_step: last step that this attempt left standing; -1 for none.
        records: what it holds.
        lost: records that its gaps tell of.
        checkpoint: step and name of the checkpoint that sealed it.
    """

    number: int
    attempt: int
    continues_step: int
    records: list[Record] = []
    lost: int = 0
    checkpoint: tuple[int, str] | None = None


class Files:
    """The segments of a run. Closed ones are read once."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._closed: dict[Path, Segment] = {}

    def segments(self) -> list[Segment]:
        """Return every segment in the order of the log."""
        for path in (self._run / "history").glob("*.jsonl"):
            if path not in self._closed:
                self._closed[path] = _parse(path)
        found = {segment.number: segment for segment in self._closed.values()}
        live = self._run / "sae_features.live.jsonl"
        if live.exists():
            segment = _parse(live)
            found.setdefault(segment.number, segment)
        return [found[number] for number in sorted(found)]


class Lives:
    """What the lives were promised, by life."""

    def __init__(self) -> None:
        self.must: dict[int, list[int]] = defaultdict(list)
        self.may: dict[int, list[int]] = defaultdict(list)
        self.lost: dict[int, int] = defaultdict(int)
        self.unsettled: set[int] = set()

    def take(self, life: int, words: Iterable[Word]) -> None:
        """Take in what a life has said up to its end."""
        tried: list[int] = []
        for word in words:
            match word.said:
                case "try":
                    tried = list(range(*word.serials))
                case "kept":
                    self.must[life] += tried
                    tried = []
                case "lost":
                    kept = tried[: len(tried) - word.lost]
                    # The last of them may be torn until writing works again.
                    self.must[life] += kept[:-1]
                    self.may[life] += kept[-1:]
                    self.lost[life] += word.lost
                    self.unsettled.add(life)
                    tried = []
                case "settled":
                    self.must[life] += self.may.pop(life, [])
                    self.unsettled.discard(life)
        self.may[life] += tried


class Standing:
    """What one reader holds: everything that it heard, less what it was told is rewound."""

    def __init__(self) -> None:
        self.heard: list[Record] = []
        self.held: list[Record] = []
        self.lost = 0

    def hear(self, heard: Heard) -> None:
        """Take in what the reader says.

        Raises:
            SoakError: it says that something went wrong.
        """
        if heard.wrong:
            raise SoakError(heard.wrong)
        if heard.rewound_to is not None:
            self.held = _up_to(self.held, heard.rewound_to)
        fresh = [(step, n) for step, *ends in heard.records for n in range(*ends)]
        self.heard += fresh
        self.held += fresh
        self.lost += heard.lost


class Truth(msgspec.Struct):
    """What there is after a round.

    Attributes:
        everything: every record of every attempt.
        surviving: those that no later attempt rewound.
        checkpoints: (step, name) of every checkpoint that no later attempt rewound.
        lost: records that gaps tell of.
    """

    everything: list[Record] = []
    surviving: list[Record] = []
    checkpoints: list[tuple[int, str]] = []
    lost: int = 0


def truth_of(segments: list[Segment]) -> Truth:
    """Return what the files hold."""
    truth, attempt = Truth(), 0
    for segment in segments:
        if segment.attempt != attempt:
            attempt, stands = segment.attempt, segment.continues_step
            truth.surviving = _up_to(truth.surviving, stands)
            truth.checkpoints = [each for each in truth.checkpoints if each[0] <= stands]
        truth.everything += segment.records
        truth.surviving += segment.records
        truth.lost += segment.lost
        if segment.checkpoint:
            truth.checkpoints.append(segment.checkpoint)
    return truth


def judge(truth: Truth, lives: Lives) -> None:
    """Hold what the files hold against what the lives were promised.

    Raises:
        SoakError: something promised is missing, or something is there that nobody wrote.
    """
    _hold(truth.everything, lives)
    lost = truth.lost
    promised = sum(lives.lost.values())
    untold = sum(lives.lost[life] for life in lives.unsettled)
    if not promised - untold <= lost <= promised:
        raise SoakError(
            f"gaps tell of {lost} lost records, of {promised} ({untold} perhaps untold)"
        )


def _hold(everything: list[Record], lives: Lives) -> None:
    found: dict[int, list[int]] = defaultdict(list)
    for _, serial in everything:
        found[serial // SERIALS_A_LIFE].append(serial)
    for life in {*found, *lives.must}:
        there, must = found[life], lives.must[life]
        allowed = sorted({*must, *lives.may[life]})
        if there != sorted(set(there)):
            raise SoakError(f"life {life}: records are doubled or out of order")
        if missing := sorted(set(must) - set(there)):
            raise SoakError(f"life {life}: {len(missing)} promised records are gone: {missing[:5]}")
        if strange := sorted(set(there) - set(allowed)):
            raise SoakError(f"life {life}: {len(strange)} records nobody wrote: {strange[:5]}")


def _up_to(records: list[Record], step: int) -> list[Record]:
    return [record for record in records if record[0] <= step]


def _parse(path: Path) -> Segment:
    content = path.read_bytes()
    segment = Segment(0, 0, -1)
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            fields: dict[str, Any] = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue  # a torn line, which its writer has ended
        match fields.get("$log"):
            case None:
                segment.records.append((fields["step"], fields["completion"]))
            case "open":
                segment.number, segment.attempt = fields["segment"], fields["attempt"]
                segment.continues_step = fields.get("continues_step", -1)
            case "gap":
                segment.lost += fields["records"]
            case "seal":
                segment.checkpoint = fields["step"], fields["checkpoint"]
    return segment
