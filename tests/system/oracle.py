"""What a killed run must hold: from what its writers were promised, and from its bare lines."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import msgspec

from aegir_stream import codec
from aegir_stream.chunk import Chunk
from aegir_stream.events import Corrupt, Reset, Stalled
from aegir_stream.layout import RunDirectory
from aegir_stream.opening import step_of
from aegir_stream.replay import read_events
from aegir_stream.source import RunSource
from system.killed import STREAMS, Word, event

Record = tuple[int, int]
"""(step, serial number)."""


class Promises:
    """What one life was promised: what it tried, and how much of that was kept."""

    def __init__(self) -> None:
        self.opened = False
        self.dying = False
        self.kept: dict[str, list[Record]] = {stream: [] for stream in STREAMS}
        self.tried: dict[str, list[Record]] = {stream: [] for stream in STREAMS}
        self.saved: dict[str, int] = {}
        self.saving: Word | None = None

    def hear(self, word: Word) -> None:
        """Take in what the process said."""
        match word.said:
            case "open":
                self.opened = True
            case "dying":
                self.dying = True
            case "try":
                self.tried[word.stream] += [(word.step, n) for n in range(*word.serials)]
            case "save":
                self.saving = word
            case "kept":
                self._keep()

    def _keep(self) -> None:
        for stream in STREAMS:
            self.kept[stream] += self.tried[stream]
            self.tried[stream] = []
        if self.saving:
            self.saved[self.saving.checkpoint] = len(self.kept["sae_features"])
            self.saving = None


class Oracle:
    """What the run must hold, from what its writers were promised and the bare lines of its files.

    The only freedom is what a kill cut short: of the appends that were tried and not promised, a
    prefix of whole records may be there. Which one is settled by the first look after the kill.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._reader = {s: RunSource(run, s, start="start", attempts="all") for s in STREAMS}
        self.everything: dict[str, list[Record]] = {stream: [] for stream in STREAMS}
        self.surviving: dict[str, list[Record]] = {stream: [] for stream in STREAMS}
        self.checkpoints: dict[str, int] = {}
        self._unsealed: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self._torn: set[bytes] = set()
        self._feed_openings = 0
        self._live_opening: list[bytes] = []

    def judge(self, promises: Promises, *, continues: str | None) -> None:
        """Hold what a killed process left behind against what it was promised."""
        self._rewind(promises, continues)
        for stream in STREAMS:
            found = self._look(stream)
            kept, tried = promises.kept[stream], promises.tried[stream]
            assert found[: len(kept)] == kept, f"{stream}: promised and not there, or doubled"
            extra = found[len(kept) :]
            assert extra == tried[: len(extra)], f"{stream}: nobody wrote {extra[:5]}"
            self.counts["records tried and not promised, and there"] += len(extra)
            self.counts["appends cut short"] += bool(tried) and extra != tried
            self._torn |= {codec.encode(event(stream, *each)) for each in tried}
            if stream == "sae_features":
                self._seal(promises, kept_before=len(self.surviving[stream]))
            self.everything[stream] += found
            self.surviving[stream] += found

    def _rewind(self, promises: Promises, continues: str | None) -> None:
        """Take back what the process rewound, if it came so far as to say so on the disk."""
        to_step = step_of(continues)
        opening = _lines(self._run.live("sae_features"))[:1]
        if opening != self._live_opening:
            kept = self.checkpoints[continues] if continues else 0
            if continues and self._unsealed.pop(continues, None) == kept:
                self.counts["resumed from a checkpoint that was not sealed"] += 1
                assert self._was_sealed(continues), f"nobody sealed {continues}"
            self.surviving["sae_features"] = self.surviving["sae_features"][:kept]
            self.checkpoints = {n: at for n, at in self.checkpoints.items() if at <= kept}
            self._live_opening = opening
        else:
            assert not promises.opened, "promised to be open, and the live tail is the old one"
        openings = _openings(self._run.live("completions"))
        if openings > self._feed_openings:
            self.surviving["completions"] = [
                (step, serial)
                for step, serial in self.surviving["completions"]
                if to_step is not None and step <= to_step
            ]
        self._feed_openings = openings

    def _seal(self, promises: Promises, *, kept_before: int) -> None:
        """Learn which checkpoints can be resumed from."""
        self.checkpoints |= {name: kept_before + at for name, at in promises.saved.items()}
        if word := promises.saving:
            self.counts["killed while sealing"] += 1
            at = kept_before + len(promises.kept["sae_features"])
            if self._is_sealed(word.checkpoint):
                self.counts["killed while sealing, and sealed"] += 1
                self.checkpoints[word.checkpoint] = at
            elif self._was_sealed(word.checkpoint):
                # That seal would be taken for this one, so it is not resumed from.
                self.counts["killed while sealing what a rewound attempt had sealed"] += 1
            else:
                # The next attempt pays the seal that is owed, if it resumes from there.
                self._unsealed[word.checkpoint] = at
                self.checkpoints[word.checkpoint] = at

    def _is_sealed(self, checkpoint: str) -> bool:
        """Tell whether the newest files hold a seal of a checkpoint, whole."""
        closed = sorted(self._run.history_path.glob("*.jsonl"))[-1:]
        files = [*closed, self._run.live("sae_features")]
        seal = b'{"$log":"seal","checkpoint":"%b",' % checkpoint.encode()
        return any(line.startswith(seal) for path in files for line in _lines(path)[-1:])

    def _was_sealed(self, checkpoint: str) -> bool:
        """Tell whether an attempt, rewound or not, has sealed a checkpoint of that name."""
        return any(self._run.history_path.glob(f"*-{checkpoint}.jsonl"))

    def _look(self, stream: str) -> list[Record]:
        """Return what is new since the last life, in the order of the log."""
        found: list[Record] = []
        while deliveries := self._reader[stream].poll():
            for delivery in deliveries:
                assert not isinstance(delivery, Reset | Stalled), delivery
                if isinstance(delivery, Chunk):
                    found += [
                        (h.step, _serial(r))
                        for h, r in zip(delivery.heads, delivery.records, strict=True)
                    ]
                elif isinstance(delivery, Corrupt):
                    self._check_torn(delivery)
        return found

    def _check_torn(self, corrupt: Corrupt) -> None:
        """What is damaged is the beginning of a line that a kill cut short, and nothing else."""
        with Path(corrupt.path).open("rb") as file:
            file.seek(corrupt.offset)
            line = file.read(corrupt.length - 1)
        begun = line.startswith(b'{"$log"') or any(whole.startswith(line) for whole in self._torn)
        assert begun, f"{corrupt}: {line[:80]!r} is not the beginning of a line that was tried"
        self.counts["torn lines"] += 1

    def tear(self, rng: random.Random) -> None:
        """Leave the beginning of a line, as a kill in the middle of a write does."""
        stream = rng.choice(STREAMS)
        path = self._run.live(stream)
        lines = _lines(path)
        whole = path.exists() and path.read_bytes().endswith(b"\n")
        # Behind the last line of a segment nobody writes.
        ending = (b'{"$log":"seal"', b'{"$log":"close"')
        if lines and whole and not lines[-1].startswith(ending):
            line = codec.encode(event(stream, 1, 1))
            self._torn.add(line)
            with path.open("ab") as file:
                file.write(line[: rng.randrange(1, len(line) - 1)])
            self.counts["lines torn on purpose"] += 1

    def count_torn(self) -> None:
        """Every line on the disk that is damaged was reported, once."""
        files = [*self._run.history_path.glob("*.jsonl"), *map(self._run.live, STREAMS)]
        damaged = sum(not _is_json(line) for path in files for line in _lines(path))
        assert damaged == self.counts["torn lines"], (damaged, self.counts)

    def look_afresh(self) -> None:
        """Read the whole run as anyone would; it must be what the looks between the kills gave."""
        for stream in STREAMS:
            surviving = [(e.step, e.completion) for e in read_events(self._run, stream)]
            assert surviving == self.surviving[stream], (
                f"{stream}: surviving {_differ(surviving, self.surviving[stream])}"
            )
            everything = [
                (e.step, e.completion) for e in read_events(self._run, stream, attempts="all")
            ]
            assert everything == self.everything[stream], (
                f"{stream}: all {_differ(everything, self.everything[stream])}"
            )


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return False
    return True


def _lines(path: Path) -> list[bytes]:
    """Return the whole lines of a file, without the library; none if there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines()


def _openings(path: Path) -> int:
    """Return how many `open` lines a file holds, torn ones left out."""
    begun = (line for line in _lines(path) if line.startswith(b'{"$log":"open"'))
    return sum(line.endswith(b"}") for line in begun)


def _serial(record: bytes) -> int:
    serial: int = msgspec.json.decode(record)["completion"]
    return serial


def _differ(found: list[Record], expected: list[Record]) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
        min(len(found), len(expected)),
    )
    there, wanted = found[at : at + 3], expected[at : at + 3]
    return f"{len(found)} found, {len(expected)} expected, at {at}: {there} instead of {wanted}"
