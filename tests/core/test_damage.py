"""Every byte of a small log lost, every bit flipped, anything put between any two lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from aegir_stream import codec
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.events import Batch, Corrupt, Gap, Reset, SAELogRecord, Seal, Stalled
from aegir_stream.source import Level, RunSource
from aegir_stream.testing import SimulatedMachine
from core.follower import Following
from core.runs import drain, records_in
from core.simulated import ROOT, SimulatedRun, check_survivors, run_on

LIVE = ROOT / "sae_features.live.jsonl"
KEPT = ROOT / "history/00001-checkpoint-1.jsonl"
FEED = ROOT / "completions.jsonl"

levels = pytest.mark.parametrize("level", ["live", "committed"])


@contextlib.contextmanager
def at(place: object) -> Iterator[None]:
    """Name the place where a campaign fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"What happened at {place}")
        raise


def small_run() -> SimulatedRun:
    """Return a run of two steps with a checkpoint between them, whose trainer was killed."""
    run = SimulatedRun(SimulatedMachine())
    run.begin()
    run.take_step()
    run.save()
    run.take_step(1)
    run.kill()
    return run


# -- every byte -----------------------------------------------------------------------------------


def kept_of(content: bytes, level: Level) -> list[int]:
    """Return the serials of the records that are whole in a file, or committed there."""
    found: list[int] = []
    waiting: list[int] = []
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        if not codec.is_control(line):
            waiting.append(codec.decode(line, SAELogRecord).completion or 0)
        elif isinstance(codec.decode_control(line), Batch | Seal):
            found, waiting = found + waiting, []
    return found + (waiting if level == "live" else [])


@levels
def test_of_every_prefix_of_a_file_a_prefix_is_read(level: Level) -> None:
    """However a file is cut, its whole lines are delivered, or its whole appends, and no more."""
    run = small_run()
    whole = {path: run.machine.files()[path] for path in (KEPT, LIVE)}
    for path, content in whole.items():
        for end in range(len(content) + 1):
            run.machine.put(path, content[:end])
            wanted = [
                serial
                for each, all_of_it in whole.items()
                for serial in kept_of(all_of_it[:end] if each == path else all_of_it, level)
            ]
            with at((path, end)):
                reader = Following(run, "sae_features", start="start", level=level)
                assert reader.read_to_the_end().get("rank0", []) == wanted
        run.machine.put(path, content)


@pytest.mark.parametrize(("path", "stride"), [(LIVE, 1), (KEPT, 11), (FEED, 5)])
def test_a_writer_goes_on_from_every_prefix_of_a_file(path: Path, stride: int) -> None:
    """What it appends is read, and nothing of what was left is lost, doubled or reordered."""
    size = len(small_run().machine.files()[path])
    for end in range(0, size, stride):
        run = small_run()
        before = run.machine.files()[path]
        run.machine.put(path, before[:end])
        with at((path, end)):
            left = run.read()
            run.resume()
            run.take_step()
            run.close()
            found = run.read()
            assert all(left.serials[stream] <= found.serials[stream] for stream in left.serials)
            assert found.of(run.now) == run.now.count()
            # What was there is there still, as it was.
            assert any(content.startswith(before[:end]) for content in run.machine.files().values())
            if end >= before.index(b"\n") + 1:
                check_survivors(run, found)


# -- every bit, and every line --------------------------------------------------------------------


class Small(NamedTuple):
    """A sealed file with two appends of a record each."""

    machine: SimulatedMachine
    content: bytes
    records: list[SAELogRecord]

    def damaged(self, content: bytes, level: Level) -> list[Delivery]:
        """Return what is read when the file holds something else."""
        self.machine.put(KEPT, content)
        source = RunSource(run_on(self.machine.process()), start="start", level=level)
        return drain(source)


@pytest.fixture(scope="module")
def small() -> Small:
    """A small log."""
    run = SimulatedRun(SimulatedMachine())
    run.begin()
    run.step = 1
    run.emit("sae_features", 1)
    run.emit("sae_features", 1)
    run.save()
    reader = RunSource(run_on(run.machine.process()), start="start")
    return Small(run.machine, run.machine.files()[KEPT], records_in(drain(reader)))


def told(deliveries: Iterable[Delivery]) -> int:
    """Return how often a loss was told."""
    return sum(isinstance(delivery, Corrupt | Gap | Reset | Stalled) for delivery in deliveries)


def decoded(deliveries: Iterable[Delivery]) -> list[object]:
    """Return the records, as far as they can be decoded, else their lines."""
    return [_decoded(r) for d in deliveries if isinstance(d, Chunk) for r in d.records]


def _decoded(line: bytes) -> object:
    try:
        return codec.decode(line, SAELogRecord)
    except ValueError:
        return line


@levels
def test_no_flipped_bit_goes_unnoticed(small: Small, level: Level) -> None:
    """Live, a record may come changed; committed, what comes is what was written."""
    assert len(small.content) < 1500
    for place in range(8 * len(small.content)):
        content = bytearray(small.content)
        content[place // 8] ^= 1 << place % 8
        with at(f"bit {place}: {bytes(content)!r}"):
            deliveries = small.damaged(bytes(content), level)
            check_damaged(small, deliveries, changed=level == "live")


def check_damaged(small: Small, deliveries: list[Delivery], *, changed: bool) -> None:
    """Check that nothing is doubled or reordered, and that what is missing was told."""
    found = decoded(deliveries)
    whole = [small.records.index(record) for record in found if record in small.records]
    assert whole == sorted(set(whole))
    assert len(found) <= len(small.records)
    assert changed or len(whole) == len(found)
    missing = len(small.records) - len(found)
    assert not missing or told(deliveries)


@levels
@pytest.mark.parametrize(
    "junk",
    [bytes(64), b"\xff{]", b'{"step":1}', b'{"$log":"batch"}', b""],
    ids=["nuls", "garbage", "an object", "a trailer", "nothing"],
)
@pytest.mark.parametrize("ended", [True, False])
def test_junk_between_lines_costs_what_it_touches(
    small: Small, junk: bytes, level: Level, *, ended: bool
) -> None:
    """A line of its own costs nothing at `live`; one that swallows the next line costs that."""
    lines = small.content.splitlines(keepends=True)
    for place in range(1, len(lines) + 1):
        content = b"".join([*lines[:place], junk + b"\n" * ended, *lines[place:]])
        with at(f"line {place}"):
            deliveries = small.damaged(content, level)
            check_damaged(small, deliveries, changed=False)
            if ended and level == "live":
                assert decoded(deliveries) == small.records


@levels
def test_a_gigantic_line_anywhere_costs_nothing(
    small: Small, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is passed over, told, and the records around it are delivered."""
    monkeypatch.setattr("aegir_stream.tail.LINE_LIMIT_BYTES", 300_000)
    lines = small.content.splitlines(keepends=True)
    # Before the last line: behind the seal nothing is looked for.
    for place in range(1, len(lines)):
        content = b"".join([*lines[:place], b"x" * 600_000 + b"\n", *lines[place:]])
        with at(f"line {place}"):
            deliveries = small.damaged(content, level)
            assert told(deliveries)
            check_damaged(small, deliveries, changed=False)
            if level == "live":
                assert decoded(deliveries) == small.records


# -- while it is read -----------------------------------------------------------------------------


@levels
@pytest.mark.parametrize("bounds_reads", [True, False])
def test_a_size_out_of_date_doubles_nothing(level: Level, *, bounds_reads: bool) -> None:
    """A follower that sees an earlier size waits; with the true one it goes on where it was."""
    run = SimulatedRun(SimulatedMachine())
    run.begin()
    looks = []
    for _ in range(4):
        run.take_step()
        looks.append(run.machine.look(bounds_reads=bounds_reads))
    reader = Following(run, "sae_features", start="start", level=level)
    reader.read_to_the_end()
    run.take_step()
    for look in looks:
        reader.process.believed = look
        for _ in range(3):
            reader.poll()
    reader.check_complete()


@levels
def test_a_truncation_while_reading_is_told_and_doubles_nothing(level: Level) -> None:
    """At whatever length the file goes on, what is written behind it is delivered once."""
    size = len(grown(2).machine.files()[LIVE])
    for end in range(grown(0).machine.files()[LIVE].find(b"\n") + 1, size, 7):
        run = grown(2)
        reader = Following(run, "sae_features", start="start", level=level)
        before = [*reader.read_to_the_end()["rank0"]]
        run.machine.put(LIVE, run.machine.files()[LIVE][:end])
        with at(end):
            seen: list[Delivery] = []
            for _ in range(4):
                seen += drain(reader.source)
                run.take_step()
            seen += drain(reader.source)
            assert sum(isinstance(delivery, Reset) for delivery in seen) == 1
            found = [record.completion for record in records_in(seen)]
            fresh = [s for s in run.now.emitted["sae_features"] if s not in before]
            # The first of them may stand behind the rest of a line that was cut.
            assert found in (fresh, fresh[1:], fresh[2:])
            assert found == fresh or told(seen) > 1


def grown(steps: int) -> SimulatedRun:
    """Return a run that is being recorded."""
    run = SimulatedRun(SimulatedMachine())
    run.begin()
    run.emit("sae_features", 0)
    for _ in range(steps):
        run.take_step()
    return run


@levels
@pytest.mark.parametrize("inode", ["same", "new", "reused"])
def test_another_log_in_the_place_of_the_one_that_is_read_is_told(level: Level, inode: str) -> None:
    """Its records are delivered from the first, whatever its inode."""
    run, other = grown(2), grown(3)
    source = RunSource(run_on(run.machine.process()), start="start", level=level)
    drain(source)
    run.kill()
    run.machine.put(LIVE, other.machine.files()[LIVE], inode=inode)  # type: ignore[arg-type]

    seen = drain(source)

    assert [type(d) for d in seen if isinstance(d, Reset)] == [Reset]
    assert [r.completion for r in records_in(seen)] == other.surviving["sae_features"]


@levels
def test_a_closed_file_that_stays_too_short_is_given_up(level: Level) -> None:
    """Nothing will be appended to it: after a while it is told, and what follows is read."""
    run = grown(2)
    reader = Following(run, "sae_features", start="start", level=level)
    reader.read_to_the_end()
    run.save()
    run.take_step()
    kept = ROOT / "history/00001-checkpoint-2.jsonl"
    run.machine.put(kept, run.machine.files()[kept][:400])

    deliveries = [delivery for _ in range(300) for delivery in reader.source.poll()]

    assert [type(d) for d in deliveries if isinstance(d, Stalled | Reset)] == [Stalled, Reset]
    assert [r.completion for r in records_in(deliveries)] == run.now.emitted["sae_features"][-2:]
