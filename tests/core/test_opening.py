from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aegir_stream.disk import AppendHandle, Disk
from aegir_stream.events import Corrupt, Gap
from aegir_stream.layout import RunDirectory
from aegir_stream.lineage import read_header
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from aegir_stream.testing import make_append, make_record
from core.runs import FullDisk, Life, descriptors, drain, drive, on, records_in


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.at(tmp_path / "run")


def test_a_file_that_moved_on_before_it_was_locked_is_left_alone(run: RunDirectory) -> None:
    """A second writer that opened the file just before the first sealed it takes another lane."""
    first = Life(run)
    first.record_step()

    class Late(Disk):
        def append(self, path: Path, *, exclusive: bool = False) -> AppendHandle:
            handle = super().append(path, exclusive=exclusive)
            if not first.saved:
                first.save()
            return handle

    second = Life(on(Late(), run))
    first.record_step()

    assert second.sink._chain is not None
    assert second.sink._chain.lane == "rank0-2"
    assert run.snapshot("checkpoint-1").read_bytes().count(b'"token_index"') == 3
    assert len(records_in(drain(RunSource(run, start="start")))) == 6


@pytest.mark.parametrize("stream", ["sae_features", "completions"])
def test_an_opening_that_cannot_be_written_leaves_no_descriptor(
    run: RunDirectory, stream: str
) -> None:
    """The lane is free for the next try, which takes the empty file that was made."""
    disk = FullDisk(b'{"$log":"open"' if stream == "sae_features" else b"no such line")
    sink = JournalSink(on(disk, run))
    if stream == "completions":
        drive(sink.open())
        disk.stops = b'{"$log":"open"'
    before = descriptors()
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            drive(sink.open() if stream == "sae_features" else _mark(sink, stream))

    assert descriptors() == before
    assert run.live(stream).read_bytes() == b""
    disk.mend()
    drive(sink.open())
    drive(sink.write(make_append(stream=stream)))
    assert run.lanes(stream) == ["rank0"]
    drive(sink.aclose())


async def _mark(sink: JournalSink, stream: str) -> None:
    await sink.mark(Gap(records=1, reason="queue full"), stream=stream)


# -- after a loss of power ------------------------------------------------------------------------


def emptied(run: RunDirectory, live: Path) -> None:
    """The name reached the medium, the content did not."""
    live.write_bytes(b"")


def nothing_but_nuls(run: RunDirectory, live: Path) -> None:
    """The size reached the medium, the content did not."""
    live.write_bytes(bytes(live.stat().st_size))


def nuls_at_the_end(run: RunDirectory, live: Path) -> None:
    """The last pages did not reach the medium."""
    live.write_bytes(live.read_bytes()[:-40] + bytes(40))


def nuls_at_the_beginning(run: RunDirectory, live: Path) -> None:
    """The first page did not reach the medium."""
    content = live.read_bytes()
    header = content.index(b"\n") + 1
    live.write_bytes(bytes(header) + content[header:])


def half_a_header(run: RunDirectory, live: Path) -> None:
    """The first line is torn."""
    live.write_bytes(live.read_bytes()[:50])


def gone(run: RunDirectory, live: Path) -> None:
    """The name did not reach the medium."""
    live.unlink()


def an_old_name(run: RunDirectory, live: Path) -> None:
    """The live path names the segment that the checkpoint had sealed."""
    live.unlink()
    live.hardlink_to(run.closed(1, "checkpoint-1"))


def an_old_copy(run: RunDirectory, live: Path) -> None:
    """Without hard links: the live path has an earlier state of that segment."""
    content = run.closed(1, "checkpoint-1").read_bytes()
    live.unlink()
    live.write_bytes(content[: len(content) // 2])


def an_old_name_and_no_other(run: RunDirectory, live: Path) -> None:
    """The sealed segment has not got its names, besides the live path."""
    an_old_name(run, live)
    run.closed(1, "checkpoint-1").unlink()
    run.snapshot("checkpoint-1").unlink()


def only_the_snapshot(run: RunDirectory, live: Path) -> None:
    """The names under `history/` did not reach the medium, and the live path is empty."""
    shutil.rmtree(run.history_path, ignore_errors=True)
    live.write_bytes(b"")


def a_number_that_another_has(run: RunDirectory, live: Path) -> None:
    """The live tail bears the number of a segment with other records."""
    live.write_bytes(live.read_bytes().replace(b'"segment":2', b'"segment":1', 1))


def a_circle(run: RunDirectory, live: Path) -> None:
    """A damaged header names itself as the segment before it."""
    live.write_bytes(live.read_bytes().replace(b'"previous":1', b'"previous":2', 1))


LOSSES = (
    emptied,
    nothing_but_nuls,
    nuls_at_the_end,
    nuls_at_the_beginning,
    half_a_header,
    gone,
    an_old_name,
    an_old_copy,
    an_old_name_and_no_other,
    only_the_snapshot,
    a_number_that_another_has,
    a_circle,
)
each_loss = pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)


@each_loss
def test_a_run_goes_on_after_a_loss_of_power(
    run: RunDirectory, lose: Callable[[RunDirectory, Path], None]
) -> None:
    """Whatever stands at the live path, a resume begins a segment of a number that is new."""
    life = Life(run)
    life.record_step()
    life.save()
    life.record_step()
    life.kill()
    lose(run, run.live("sae_features"))
    kept = {file.path: file.path.read_bytes() for file in run.history()}
    for _ in range(2):
        life.resume("checkpoint-1")
        life.record_step()
        life.kill()

    numbers = [file.segment for file in run.history()]
    newest = read_header(run, run.live("sae_features"))
    assert newest is not None
    assert newest.segment > max(numbers)
    assert len(set(numbers)) == len(numbers)
    assert all(path.read_bytes().startswith(content) for path, content in kept.items())
    assert records_in(drain(RunSource(run, start="start"))) == life.surviving
    found = [r.completion for r in records_in(drain(RunSource(run, start="start", attempts="all")))]
    assert len(set(found)) == len(found)
    assert run.snapshot("checkpoint-1").samefile(_sealed(run)) or lose is only_the_snapshot


def _sealed(run: RunDirectory) -> Path:
    files = [file.path for file in run.history() if file.label == "checkpoint-1"]
    return files[0] if files else run.root


@each_loss
def test_an_attempt_comes_after_all_that_can_be_known(
    run: RunDirectory, lose: Callable[[RunDirectory, Path], None]
) -> None:
    """Files without a header do not hide the attempts before them, even without the manifest."""
    life = Life(run)
    life.record_step()
    life.save()
    for _ in range(3):
        life.kill()
        lose(run, run.live("sae_features"))
        run.write_manifest(run.read_manifest() | {"attempts": []})
        paths = [run.live("sae_features"), *(file.path for file in run.history())]
        headers = [header for path in paths if (header := read_header(run, path))]
        life.resume("checkpoint-1")
        assert life.sink._chain is not None
        assert life.sink._chain.attempt > max((h.attempt for h in headers), default=0)
    life.kill()


@pytest.mark.parametrize("lose", [emptied, nothing_but_nuls, nuls_at_the_end, half_a_header, gone])
def test_a_feed_goes_on_after_a_loss_of_power(
    run: RunDirectory, lose: Callable[[RunDirectory, Path], None]
) -> None:
    """What is left of it stays, what is no record is told, and what comes behind it is read."""
    for step in (1, 2):
        sink = JournalSink(run)
        drive(sink.open())
        drive(sink.write(make_append(make_record(step=step), stream="completions")))
        for log in (*sink._feeds.values(), sink._chain):
            assert log is not None
            log._writer._handle.close()
        if step == 1:
            lose(run, run.live("completions"))

    deliveries = drain(RunSource(run, "completions", start="start"))
    assert records_in(deliveries)[-1].step == 2
    torn = [delivery for delivery in deliveries if isinstance(delivery, Corrupt)]
    assert len(torn) == (0 if lose in {emptied, gone} else 1)


# -- what opening owes ----------------------------------------------------------------------------


@pytest.mark.parametrize("done", [False, True])
def test_a_manifest_that_cannot_be_written_is_written_later(
    run: RunDirectory, *, done: bool
) -> None:
    """Recording does not wait for it, a flush tries again, and the attempt is listed once.

    So it is where the manifest was written although an error came back.
    """
    first = JournalSink(run)
    drive(first.open())
    drive(first.aclose())

    class Stubborn(Disk):
        broken = True

        def write(self, path: Path, content: bytes) -> None:
            if done or not self.broken:
                super().write(path, content)
            if self.broken:
                raise OSError(errno.ENOSPC, "No space left on device")

    disk = Stubborn()
    sink = JournalSink(on(disk, run))
    drive(sink.open())
    drive(sink.write(make_append()))
    with contextlib.nullcontext() if done else pytest.raises(OSError, match="No space"):
        drive(sink.flush())
    disk.broken = False
    for _ in range(2):
        drive(sink.flush())
    drive(sink.aclose())

    assert [entry["attempt"] for entry in run.read_manifest()["attempts"]] == [1, 2]
