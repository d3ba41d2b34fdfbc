from __future__ import annotations

import errno
from pathlib import Path
from unittest.mock import patch

import pytest

from aegir_stream import codec
from aegir_stream.disk import Disk
from aegir_stream.errors import UnreadableRunError
from aegir_stream.events import Close
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink, MemorySink, TeeSink
from aegir_stream.testing import SinkContract, make_append
from core.runs import FullDisk, descriptors, on

pytestmark = pytest.mark.anyio


class TestMemorySink(SinkContract):
    """The reference sink keeps the contract."""

    def make(self) -> MemorySink:
        """Return a sink."""
        self.sink = MemorySink()
        return self.sink

    def lines(self) -> list[bytes]:
        """Return what it kept."""
        return self.sink.lines("sae_features")


class TestJournalSink(SinkContract):
    """The run directory keeps the contract."""

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.run = RunDirectory.at(tmp_path / "run")

    def make(self) -> JournalSink:
        """Return a sink for an empty run."""
        return JournalSink(self.run)

    def lines(self) -> list[bytes]:
        """Return the data lines of history and live tail."""
        files = [*(f.path for f in self.run.history()), self.run.live("sae_features")]
        lines = b"".join(file.read_bytes() for file in files).splitlines()
        return [line for line in lines if not codec.is_control(line)]


class TestTeeSink(TestJournalSink):
    """Two sinks at once keep the contract, each of them."""

    def make(self) -> TeeSink:  # type: ignore[override]
        """Return a journal and a memory."""
        self.memory = MemorySink()
        return TeeSink(JournalSink(self.run), self.memory)

    def lines(self) -> list[bytes]:
        """Return what both have, which must be the same."""
        journalled = super().lines()
        assert self.memory.lines("sae_features") == journalled
        return journalled


class FailingSink(MemorySink):
    """A sink whose backend is gone."""

    async def write(self, append: object) -> None:
        """Fail."""
        raise ConnectionError(f"cannot reach the backend for {append!r:.10}")


async def test_a_failing_sink_does_not_hurt_its_neighbours() -> None:
    """Every sink of a tee gets the event; the failure is raised afterwards."""
    before, after = MemorySink(), MemorySink()
    tee = TeeSink(before, FailingSink(), after)

    with pytest.raises(ConnectionError):
        await tee.write(make_append())

    assert len(before.appends) == len(after.appends) == 1


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The error names the directory and the remedy."""
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")

    with pytest.raises(UnreadableRunError, match=r"file.*Choose another output_dir"):
        await JournalSink(RunDirectory.at(blocked / "run")).open()


async def test_closing_releases_every_file_even_if_one_cannot_be_marked(tmp_path: Path) -> None:
    """A closing mark that fails keeps no other from being written, and no file open."""
    run = RunDirectory.at(tmp_path)
    disk = FullDisk(b'{"$log":"close"')
    sink = JournalSink(on(disk, run))
    before = descriptors()
    await sink.open()
    await sink.write(make_append(stream="completions"))

    with pytest.raises(OSError, match="No space"):
        await sink.aclose()
    assert descriptors() == before


async def test_closing_releases_the_file_of_a_seal_that_is_owed(tmp_path: Path) -> None:
    """What the seal still needs is left to the next attempt, and the lane is free for it."""
    run = RunDirectory.at(tmp_path)
    sink = JournalSink(run)
    await sink.open()
    await sink.write(make_append())
    await sink.write(make_append(stream="completions"))
    with patch.object(Disk, "share", side_effect=OSError(errno.EIO, "Input/output error")):
        for action in (sink.seal(checkpoint="checkpoint-1", step=1), sink.aclose()):
            with pytest.raises(OSError, match="Input/output"):
                await action
    assert run.ending_of(run.live("completions")) == Close(status="finished", records=1)

    run.snapshot("checkpoint-1").parent.mkdir()
    again = JournalSink(run, continues="checkpoint-1")
    await again.open()
    await again.aclose()
    assert run.snapshot("checkpoint-1").samefile(run.closed(1, "checkpoint-1"))
