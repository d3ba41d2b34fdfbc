from __future__ import annotations

from pathlib import Path

import pytest

from aegir_stream.disk import AppendHandle, Disk
from aegir_stream.events import Gap
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from aegir_stream.testing import make_append
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
def test_an_opening_that_cannot_be_written_leaves_nothing(run: RunDirectory, stream: str) -> None:
    """Neither a descriptor nor an empty file is left, and the lane is free for the next try."""
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
    assert not run.live(stream).exists()
    disk.mend()
    drive(sink.open())
    drive(sink.write(make_append(stream=stream)))
    assert run.lanes(stream) == ["rank0"]
    drive(sink.aclose())


async def _mark(sink: JournalSink, stream: str) -> None:
    await sink.mark(Gap(records=1, reason="queue full"), stream=stream)
