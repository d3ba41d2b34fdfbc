from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

import msgspec

from aegir_stream import codec
from aegir_stream.batch import Events
from aegir_stream.errors import WriteLostError
from aegir_stream.events import Close, Gap, SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from aegir_stream.testing import make_append, make_record
from aegir_stream.typing import Append
from core.runs import drain, drive, records_in
from system.processes import run_apart

BLOCK_S = 0.05
LATE_S = 2.0
"""How much later than promised a shared machine may let `emit` return."""


def records(step: int, size: int) -> tuple[SAELogRecord, ...]:
    """Return records that their step and token tell apart."""
    return tuple(make_record(step=step, token=token) for token in range(size))


def batch(step: int, size: int, stream: str = "sae_features") -> Events:
    """Return a batch of such records."""
    return Events(stream, records(step, size), step=step)


def found_and_missing(run: RunDirectory) -> tuple[list[SAELogRecord], int]:
    """Return what a reader finds of a run, and how many records its log says are missing."""
    found = drain(RunSource(run, start="start"))
    return records_in(found), sum(each.records for each in found if isinstance(each, Gap))


def test_a_feed_on_a_full_device_costs_only_itself(tmp_path: Path) -> None:
    """With /dev/full as a feed's file, other streams are written, errors counted, closing ends."""
    run = RunDirectory.at(tmp_path)
    run.live("completions").symlink_to("/dev/full")
    recorder = Recorder(JournalSink(run))
    for step in range(1, 11):
        recorder.emit(batch(step, 3))
        recorder.emit(batch(step, 5, "completions"))
    sealed = recorder.seal(checkpoint="checkpoint-10", step=10)

    assert recorder.close()
    assert sealed is not None
    assert sealed.records == 30
    statistics = recorder.statistics()
    assert (statistics.records_written, statistics.records_dropped) == (30, 50)
    assert statistics.errors >= 10
    assert "No space left on device" in str(statistics.last_error)
    expected = [record for step in range(1, 11) for record in records(step, 3)]
    assert found_and_missing(run) == (expected, 0)
    last = run.live("sae_features").read_bytes().splitlines()[-1]
    assert codec.decode_control(last) == Close(status="finished")


def test_a_link_to_a_full_disk_is_left_in_place(tmp_path: Path) -> None:
    """A feed that was put elsewhere by a link stays there, and its records are lost and counted."""
    run = RunDirectory.at(tmp_path)
    run.live("completions").symlink_to("/dev/full")
    recorder = Recorder(JournalSink(run))
    for step in (1, 2):
        recorder.emit(batch(step, 5, "completions"))
    assert recorder.close()

    assert run.live("completions").readlink() == Path("/dev/full")
    statistics = recorder.statistics()
    assert (statistics.records_written, statistics.records_dropped) == (0, 10)


def test_a_file_at_its_size_limit_goes_on_when_the_limit_is_raised(tmp_path: Path) -> None:
    """Wherever the limit cuts: first the rest of the torn line, then the gap, and nothing is lost.

    Delivered and gap together are what was emitted, and every line is whole.
    """
    print(run_apart(cut_by_limits, tmp_path).decode())  # noqa: T201 - pytest shows it with -rP


def cut_by_limits(directory: str) -> None:
    """Let RLIMIT_FSIZE cut an append at one place after the other, in one process each run."""
    line = len(codec.encode(make_record(step=2, token=0)))
    cuts = [*range(0, 2 * line, 7), *range(3 * line - 2, 3 * line + 3), 6 * line - 1, 7 * line]
    torn = 0
    for cut in cuts:
        run = RunDirectory.at(Path(directory, f"run-{cut}"))
        torn += _cut(run, cut)
    assert torn > len(cuts) // 2
    print(f"cut at {len(cuts)} places, {torn} of them inside a line")  # noqa: T201 - the result


def _cut(run: RunDirectory, cut: int) -> bool:
    """Let the second of four appends end after `cut` bytes; tell whether that tore a line."""
    sink, live = JournalSink(run), run.live("sae_features")
    appends = [make_append(*records(step, 6)) for step in (1, 2, 3, 4)]
    drive(sink.open())
    drive(sink.write(appends[0]))
    whole = live.stat().st_size
    _limit(whole + cut)
    lost = [_lost(sink, append) for append in appends[1:3]]
    at_limit = live.read_bytes()
    _limit(None)
    drive(sink.write(appends[3]))
    drive(sink.aclose())

    content = live.read_bytes()
    assert content.startswith(at_limit)
    assert all(_is_json(line) for line in content.splitlines())
    found, missing = found_and_missing(run)
    assert missing == sum(lost)
    assert len(found) + missing == 24
    torn, behind = at_limit.rpartition(b"\n")[2], content[len(at_limit) :].splitlines()
    if torn:
        line = torn + behind[0]
        assert codec.is_control(line) or line in (appends[1].data + appends[2].data).splitlines()
    controls = [codec.decode_control(line) for line in behind if codec.is_control(line)]
    gaps = [control for control in controls if isinstance(control, Gap)]
    first_lost = 2 if lost[0] else 3
    assert gaps == [
        Gap(records=missing, reason="File too large", first_step=first_lost, last_step=3)
    ]
    assert content.index(codec.encode(gaps[0])) < content.index(appends[3].data)
    return bool(torn)


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return False
    return True


def _lost(sink: JournalSink, append: Append) -> int:
    """Return how many records of an append were lost."""
    try:
        drive(sink.write(append))
    except WriteLostError as error:
        return error.records_lost
    return 0


def _limit(size: int | None) -> None:
    """Set the soft limit on the size of files, or raise it to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def test_a_small_disk_filled_up_and_emptied_again_loses_only_what_it_says(small_disk: Path) -> None:
    """However often space ends and returns, delivered and gap together are what was emitted.

    The trainer is never held up longer than the policy says, and the recorder's statistics are
    what the log says.
    """
    run = RunDirectory.at(small_disk / "run")
    recorder = Recorder(JournalSink(run), queue_bytes=100 << 10, overflow="block", block_s=BLOCK_S)
    emitted: list[SAELogRecord] = []
    slowest_s = 0.0
    errors = [0]
    for step in range(1, 401):
        one = batch(step, 2)
        emitted += records(step, 2)
        began = time.monotonic()
        recorder.emit(one)
        slowest_s = max(slowest_s, time.monotonic() - began)
        if step % 100 == 30:
            recorder.flush()
            fill(small_disk)
        if step % 100 == 60:
            recorder.flush()
            recorder.seal(checkpoint=f"checkpoint-{step}", step=step)
            errors.append(recorder.statistics().errors)
            (small_disk / "ballast").unlink()
    assert recorder.close()

    assert slowest_s < BLOCK_S + LATE_S
    assert errors == sorted(set(errors))
    statistics = recorder.statistics()
    found, missing = found_and_missing(run)
    assert (statistics.records_written, statistics.records_dropped) == (len(found), missing)
    assert len(found) + missing == len(emitted)
    assert missing
    remaining = iter(emitted)
    assert all(record in remaining for record in found)


def fill(disk: Path) -> None:
    """Leave no byte free on a file system."""
    with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
