from __future__ import annotations

from pathlib import Path

import pytest

from aegir_stream import codec
from aegir_stream.errors import UnreadableRunError
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink, MemorySink, TeeSink
from aegir_stream.testing import SinkContract, make_append

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
