"""A reader of a simulated run, and what must be true of what it is given."""

from __future__ import annotations

from aegir_stream.events import Reset, SourceSwitch
from aegir_stream.source import Level, RunSource, Start
from core.simulated import Serials, SimulatedRun, assert_in_order, checked, run_on


class Following:
    """A reader that follows one stream, with a ledger of what it was given.

    Attributes:
        process: its process.
        seen: serials that it was given, by lane.
        excused: whether something may be lost that it has seen.
        resumed: whether it has come back.
    """

    def __init__(self, run: SimulatedRun, stream: str, *, start: Start, level: Level) -> None:
        self.run = run
        self.stream = stream
        self.start: Start = start
        self.level: Level = level
        self.seen: dict[str, Serials] = {}
        self.excused = False
        self.resumed = False
        self._read_by(after=None)

    def poll(self) -> bool:
        """Read some; tell whether there was anything."""
        deliveries = self.source.poll()
        for delivery in deliveries:
            if isinstance(delivery, SourceSwitch) and (delivery.verdict or "resumed") != "resumed":
                # The verdict tells its owner that all it has is void.
                self.seen, self.excused = {}, True
            assert not isinstance(delivery, Reset), delivery
        for lane, serials in checked(self.run, self.stream, deliveries).items():
            self.seen.setdefault(lane, []).extend(serials)
        assert_in_order(self.seen)
        return bool(deliveries)

    def come_back(self, *, excused: bool = False) -> None:
        """Go on from the cursor, in another process."""
        self.excused = self.excused or excused
        self.resumed = True
        self.process.kill()
        self._read_by(after=self.source.cursor.text())

    def read_to_the_end(self) -> dict[str, Serials]:
        """Read on until nothing is left; return what was seen."""
        self.process.believed = None
        while self.poll():
            pass
        return self.seen

    def check_complete(self) -> None:
        """Read to the end; what a fresh reader finds behind the first record seen, was seen."""
        self.read_to_the_end()
        if self.excused:
            return
        fresh = Following(self.run, self.stream, start="start", level=self.level)
        survivors = {*self.run.survivors(self.stream)}
        for lane, serials in fresh.read_to_the_end().items():
            seen = self.seen.get(lane, [])
            wanted = serials if self.start == "start" else serials[len(serials) - len(seen) :]
            if self.resumed:
                # Who comes back after a resume is not shown what it rewound.
                wanted = [serial for serial in wanted if serial in {*seen} | survivors]
            assert seen == wanted, (lane, seen, wanted)

    def _read_by(self, after: str | None) -> None:
        self.process = self.run.machine.process()
        self.source = RunSource(
            run_on(self.process),
            self.stream,
            after=after,
            start=self.start,
            attempts="all",
            level=self.level,
        )
