"""The public test kit: a clock that stands still, event strategies, one contract for all sinks."""

from __future__ import annotations

from typing import Any

import anyio

from aegir_stream import codec
from aegir_stream.errors import SinkClosedError
from aegir_stream.events import Gap, Note, SAELogRecord
from aegir_stream.typing import Append, Sink

__all__ = ["ManualClock", "SinkContract", "make_append", "make_record", "records"]


class ManualClock:
    """A clock that moves when a test says so (see `aegir_stream.typing.Clock`).

    Attributes:
        now: seconds, of every kind of time.
    """

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self._moved = anyio.Event()

    def time(self) -> float:
        """Return `now`."""
        return self.now

    def monotonic(self) -> float:
        """Return `now`."""
        return self.now

    def thread_time(self) -> float:
        """Return `now`."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Return when the clock has been moved by `seconds`."""
        until = self.now + seconds
        while self.now < until:
            await self._moved.wait()

    def advance(self, seconds: float) -> None:
        """Move the clock and wake whoever slept long enough."""
        self.now += seconds
        moved, self._moved = self._moved, anyio.Event()
        moved.set()


def make_record(
    *, step: int = 1, token: int = 0, layer: int = 0, completion: int | None = 0
) -> SAELogRecord:
    """Return a small, valid record that its arguments tell apart from others."""
    return SAELogRecord(
        step=step,
        token_index=token,
        layer_index=layer,
        top_feature_indices=(token, token + 7),
        top_feature_activations=(2.5 + token, 1.25),
        reconstruction_loss=0.5 + step,
        completion=completion,
    )


def make_append(*events: SAELogRecord, stream: str = "sae_features") -> Append:
    """Return an append of records (one made up record if none is given)."""
    events = events or (make_record(),)
    data = b"".join(map(codec.encode, events))
    return Append(stream=stream, data=data, records=len(events), step=events[0].step)


def records(*, max_features: int = 4) -> Any:
    """Return a hypothesis strategy for `SAELogRecord`, non-finite floats included.

    Needs hypothesis, which the `test` extra installs.
    """
    from hypothesis import strategies as st  # noqa: PLC0415 - only tests have hypothesis

    floats = st.floats(width=32)
    features = st.lists(
        st.tuples(st.integers(0, 2**24), floats), max_size=max_features, unique_by=lambda f: f[0]
    )
    return st.builds(
        lambda fired, **scalars: SAELogRecord(
            top_feature_indices=tuple(index for index, _ in fired),
            top_feature_activations=tuple(activation for _, activation in fired),
            **scalars,
        ),
        features,
        step=st.integers(0, 2**40),
        token_index=st.integers(0, 2**20),
        layer_index=st.integers(0, 200),
        reconstruction_loss=floats,
        completion=st.none() | st.integers(0, 2**20),
    )


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
