"""One contract for all sinks."""

from __future__ import annotations

from aegir_stream.errors import SinkClosedError
from aegir_stream.events import Gap, Note
from aegir_stream.testing.events import make_append, make_record
from aegir_stream.typing import Sink

__all__ = ["SinkContract"]


class SinkContract:
    """What every sink must do; subclass it, implement `make` and `lines`, and let pytest find it.

    The tests are asynchronous and need anyio's pytest plugin.
    """

    def make(self) -> Sink:
        """Return a sink that was not opened yet."""
        raise NotImplementedError

    def lines(self) -> list[bytes]:
        """Return the data lines that the sink made by `make` has passed on, without newlines."""
        raise NotImplementedError

    async def test_passes_on_every_line_once_in_order(self) -> None:
        """Appends arrive whole, once and in the order of the writes."""
        sink = self.make()
        appends = [make_append(make_record(step=step, token=step)) for step in range(1, 6)]

        await sink.open()
        for append in appends:
            await sink.write(append)
        await sink.flush()
        written = self.lines()
        await sink.aclose()

        assert [append.data.rstrip(b"\n") for append in appends] == written

    async def test_keeps_appends_of_many_records_whole(self) -> None:
        """An append of several records arrives as that many lines."""
        sink = self.make()

        await sink.open()
        await sink.write(make_append(*(make_record(token=token) for token in range(50))))
        await sink.aclose()

        assert len(self.lines()) == 50

    async def test_marks_and_seals_add_no_record(self) -> None:
        """Gaps, notes and checkpoints change nothing about the data lines."""
        sink = self.make()

        await sink.open()
        await sink.write(make_append())
        await sink.mark(Gap(records=3, reason="disk full"), stream="sae_features")
        await sink.mark(Note(kind="self_test", detail={"ok": True}), stream="sae_features")
        await sink.seal(checkpoint="checkpoint-1", step=1)
        await sink.write(make_append(make_record(step=2)))
        await sink.aclose()

        assert len(self.lines()) == 2

    async def test_refuses_writes_after_closing(self) -> None:
        """A closed sink raises `SinkClosedError`; closing again does nothing."""
        sink = self.make()
        await sink.open()
        await sink.aclose()
        await sink.aclose()

        refused = False
        try:
            await sink.write(make_append())
        except SinkClosedError:
            refused = True

        assert refused

    async def test_opens_twice_without_harm(self) -> None:
        """Opening an open sink changes nothing."""
        sink = self.make()

        await sink.open()
        await sink.open()
        await sink.write(make_append())
        await sink.aclose()

        assert len(self.lines()) == 1
