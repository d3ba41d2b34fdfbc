from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aegir_stream.config import P5Cfg
from aegir_stream.disk import Disk
from aegir_stream.durability import Durability
from aegir_stream.errors import OptionError, UnsyncedError, WriteLostError
from aegir_stream.events import Closed, Gap, Note, Reset, Rewound
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from aegir_stream.testing import Fault, Killed, SimulatedMachine, make_append, make_record
from aegir_stream.typing import Sealed
from core.runs import drain, drive, records_in

ROOT = Path("/runs/run")
FEED = "completions"
modes = pytest.mark.parametrize("durability", ["os", "checkpoint", "interval"])


class Session:
    """A journal on a simulated machine: steps of three records, and three completions each."""

    def __init__(
        self,
        machine: SimulatedMachine,
        durability: Durability,
        *,
        continues: str | None = None,
        control_lines: bool = True,
    ) -> None:
        self.machine = machine
        self.run = seen(machine)
        self.sink = JournalSink(
            self.run, durability=durability, continues=continues, control_lines=control_lines
        )
        drive(self.sink.open())

    def step(self, step: int) -> None:
        """Record a step."""
        for stream in ("sae_features", FEED):
            events = (make_record(step=step, token=token) for token in range(3))
            drive(self.sink.write(make_append(*events, stream=stream)))

    def save(self, step: int) -> Sealed:
        """Seal a checkpoint."""
        sealed = drive(self.sink.seal(checkpoint=f"checkpoint-{step}", step=step))
        assert sealed is not None
        return sealed

    def flush(self) -> None:
        """Flush."""
        drive(self.sink.flush())

    def end(self) -> None:
        """Close."""
        drive(self.sink.aclose())


def seen(machine: SimulatedMachine) -> RunDirectory:
    """Return the run as a process of its own sees it."""
    return RunDirectory(P5Cfg(output_dir=str(ROOT)), disk=Disk(machine.process()))


def steps_in(machine: SimulatedMachine, stream: str = "sae_features") -> list[int]:
    """Return the step of every record that can be read."""
    source = RunSource(seen(machine), stream, start="start")
    return [record.step for record in records_in(drain(source))]


def told(machine: SimulatedMachine, stream: str = "sae_features") -> list[Any]:
    """Return the details of the notes about failed syncs."""
    deliveries = drain(RunSource(seen(machine), stream, start="start"))
    return [d.detail for d in deliveries if isinstance(d, Note) and d.kind == "sync_failed"]


def syncs(machine: SimulatedMachine, *, since: int = 0) -> list[tuple[str, str]]:
    """Return the syncs and the changes of names that were made, with the name they are about."""
    kinds = {"sync", "sync_data", "link", "rename"}
    calls = machine.calls[since:]
    return [(call.kind, _plain(call.path.name)) for call in calls if call.kind in kinds]


def _plain(name: str) -> str:
    return "temporary" if name.startswith(".") else name


def thrice(*steps: int) -> list[int]:
    """Return the steps of three records each."""
    return [step for step in steps for _ in range(3)]


# -- what is synced when --------------------------------------------------------------------------


def test_the_default_syncs_nothing_on_the_way() -> None:
    """After opening, neither a step nor a flush or a checkpoint syncs anything.

    The end syncs the manifest, a small file that is replaced as a whole, and no log.

    A step costs two calls for each stream, one for the records and one for their trailer.
    """
    machine = SimulatedMachine()
    session = Session(machine, "os")
    session.step(1)
    opened = len(machine.calls)
    session.step(2)
    session.flush()
    calls = [call.kind for call in machine.calls[opened:]]
    session.save(1)
    saved = len(machine.calls)
    session.end()

    assert calls == ["write"] * 4
    made = [call for call in syncs(machine, since=opened) if call[0].startswith("sync")]
    assert made == [("sync", "temporary")]
    assert made[0] in syncs(machine, since=saved)


@modes
def test_a_flush_without_news_makes_no_system_call(durability: Durability) -> None:
    """The recorder may flush as often as it likes."""
    machine = SimulatedMachine()
    session = Session(machine, durability)
    session.step(1)
    session.flush()
    before = len(machine.calls)
    session.flush()

    assert len(machine.calls) == before


@pytest.mark.parametrize("durability", ["checkpoint", "interval"])
def test_a_checkpoint_is_on_the_medium_when_it_is_sealed(durability: Durability) -> None:
    """Contents are synced before they get their names, and the names before sealing returns."""
    machine = SimulatedMachine()
    session = Session(machine, durability)
    session.step(1)
    before = len(machine.calls)
    session.save(1)

    assert syncs(machine, since=before) == [
        ("sync_data", "completions.jsonl"),
        ("sync_data", "sae_features.live.jsonl"),
        ("link", "sae_features.live.jsonl"),
        ("rename", "temporary"),
        ("link", "sae_features.live.jsonl"),
        ("rename", "temporary"),
        ("rename", "temporary"),
        ("sync", "run"),
        ("sync", "history"),
        ("sync", "checkpoint-1"),
    ]


def test_a_step_is_synced_by_a_flush_under_interval_only() -> None:
    """`checkpoint` leaves what comes between two checkpoints to the kernel."""
    counts = {}
    for durability in ("checkpoint", "interval"):
        machine = SimulatedMachine()
        session = Session(machine, durability)
        session.step(1)
        before = len(machine.calls)
        session.flush()
        counts[durability] = [kind for kind, _ in syncs(machine, since=before)]

    assert counts == {"checkpoint": [], "interval": ["sync_data", "sync_data", "sync"]}


def test_an_unknown_durability_is_refused() -> None:
    """The message names what there is."""
    with pytest.raises(OptionError, match=r"`os`, `interval` or `checkpoint`.*got `always`"):
        JournalSink(seen(SimulatedMachine()), durability="always")  # type: ignore[arg-type]


# -- loss windows ---------------------------------------------------------------------------------

KEPT: dict[Durability, list[int]] = {
    "os": [],
    "checkpoint": thrice(1),
    "interval": thrice(1, 2),
}


def lived(durability: Durability) -> SimulatedMachine:
    """Return a machine after three steps: the first sealed, the second flushed, the third not."""
    machine = SimulatedMachine()
    session = Session(machine, durability)
    session.step(1)
    session.save(1)
    session.step(2)
    session.flush()
    session.step(3)
    return machine


@modes
@pytest.mark.parametrize("stream", ["sae_features", FEED])
def test_a_power_cut_takes_no_more_than_the_mode_allows(
    durability: Durability, stream: str
) -> None:
    """At worst `os` loses all, `checkpoint` what came after the last, `interval` the last flush."""
    machine = lived(durability)
    machine.power_cut(min)

    assert steps_in(machine, stream) == KEPT[durability]


@given(
    durability=st.sampled_from([*KEPT]),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    keeps_sizes=st.booleans(),
)
@example(durability="os", shares=[1.0, 0.0, 0.0, 0.0], keeps_sizes=False)
def test_whatever_a_power_cut_leaves_is_in_order(
    durability: Durability, shares: list[float], *, keeps_sizes: bool
) -> None:
    """Between the worst and the best, what is read is a prefix, and the next attempt can write.

    The kernel writes files back in any order, so under `os` it is a prefix of each segment.
    """
    machine = lived(durability)
    share = itertools.cycle(shares)
    machine.power_cut(
        lambda least, most: least + round(next(share) * (most - least)), keeps_sizes=keeps_sizes
    )
    left = steps_in(machine)

    if durability == "os":
        segments = [[step for step in left if step < 2], [step for step in left if step >= 2]]
        wrote = [thrice(1), thrice(2, 3)]
        assert left == segments[0] + segments[1]
        assert all(a == b[: len(a)] for a, b in zip(segments, wrote, strict=True))
    else:
        assert left == thrice(1, 2, 3)[: len(left)]
    assert len(left) >= len(KEPT[durability])
    sealed = (ROOT / "checkpoint-1" / "sae_features.jsonl") in machine.files()
    again = Session(machine, durability, continues="checkpoint-1" if sealed else None)
    again.step(2)
    again.end()
    assert steps_in(machine)[-3:] == thrice(2)


@modes
def test_a_killed_process_loses_nothing_that_was_written(durability: Durability) -> None:
    """What is in the page cache does not need the process."""
    machine = lived(durability)
    machine._processes[0].kill()

    assert steps_in(machine) == thrice(1, 2, 3)


@pytest.mark.parametrize("stream", ["sae_features", FEED])
def test_what_was_flushed_survives_without_any_checkpoint(stream: str) -> None:
    """Under `interval` the names of new files are safe as well."""
    machine = SimulatedMachine()
    session = Session(machine, "interval")
    session.flush()
    session.step(1)
    session.flush()
    machine.power_cut(min)

    assert steps_in(machine, stream) == thrice(1)


def test_the_directories_of_a_run_are_synced_when_they_are_made() -> None:
    """A run whose directory has no name on the medium would be lost with all that is in it."""
    machine = SimulatedMachine()
    Session(machine, "checkpoint")
    first = [call.path for call in machine.calls if call.kind == "sync" and call.path != ROOT]
    made = len(machine.calls)
    Session(machine, "checkpoint")

    assert {Path("/"), Path("/runs")} <= {*first}
    again = {call.path for call in machine.calls[made:] if call.kind == "sync"}
    assert not again & {Path("/"), Path("/runs")}


@pytest.mark.parametrize("durability", ["checkpoint", "interval"])
def test_what_was_closed_survives(durability: Durability) -> None:
    """Closing syncs what came since the last checkpoint, in a run that has none as well."""
    machine = SimulatedMachine()
    session = Session(machine, durability)
    session.step(1)
    session.end()
    machine.power_cut(min)

    assert steps_in(machine) == steps_in(machine, FEED) == thrice(1)


@pytest.mark.parametrize("durability", ["checkpoint", "interval"])
def test_a_seal_that_a_kill_cut_short_is_synced_by_the_next_attempt(durability: Durability) -> None:
    """Training resumes from that checkpoint, so its records must be as safe as others."""
    machine = SimulatedMachine()
    session = Session(machine, durability)
    session.step(1)
    session.run.disk.make_directory(ROOT / "checkpoint-1")
    live = ROOT / live_name(session)
    kill = machine._processes[0].kill
    machine.fail(Fault(kinds=frozenset({"sync_data"}), under=live, meanwhile=kill))
    with pytest.raises(Killed):
        session.save(1)
    again = Session(machine, durability, continues="checkpoint-1")
    assert again.sink is not None
    machine.power_cut(min)

    assert steps_in(machine) == thrice(1)


# -- a sync that fails ----------------------------------------------------------------------------


def broken(machine: SimulatedMachine, name: str, *, times: int = 1) -> None:
    """Have the next sync of a file fail."""
    kinds = frozenset({"sync", "sync_data"})
    machine.fail(Fault(error=errno.EIO, kinds=kinds, under=ROOT / name, times=times))


def live_name(session: Session) -> str:
    """Return the name under which the live tail was opened."""
    assert session.sink._chain is not None
    return session.sink._chain._writer.path.name


def test_after_a_failed_sync_writing_goes_on_in_a_fresh_segment() -> None:
    """The file is left as it is, readers lose nothing and are told, and so is the owner."""
    machine = SimulatedMachine()
    session = Session(machine, "interval")
    follower = RunSource(seen(machine), start="start")
    session.step(1)
    deliveries = drain(follower)
    broken(machine, live_name(session))
    with pytest.raises(UnsyncedError, match=r"live\.jsonl.*could not be synced: Input/output"):
        session.flush()
    session.step(2)
    session.flush()
    deliveries += drain(follower)
    session.save(2)
    deliveries += drain(follower)

    reason = os.strerror(errno.EIO)
    note = {"file": "sae_features.live.jsonl", "reason": reason, "segment": 1}
    assert told(machine) == [note]
    assert [record.step for record in records_in(deliveries)] == thrice(1, 2)
    assert not [d for d in deliveries if isinstance(d, Rewound | Reset | Closed | Gap)]
    assert steps_in(machine) == thrice(1, 2)
    labels = [(file.segment, file.label) for file in session.run.history()]
    assert labels == [(1, "unsynced"), (2, "checkpoint-2")]


def test_records_in_a_segment_that_was_left_count_as_written_since_the_seal() -> None:
    """A checkpoint is not sealed again as if nothing had come after it."""
    machine = SimulatedMachine()
    session = Session(machine, "interval")
    session.step(1)
    sealed = session.save(1)
    assert session.save(1) == sealed
    session.step(2)
    broken(machine, live_name(session))
    with pytest.raises(UnsyncedError):
        session.flush()
    with pytest.raises(OptionError, match="`checkpoint-1` is sealed with 3 records, and 3 were"):
        session.save(1)
    second = session.save(2)

    assert session.save(2) == second
    assert steps_in(machine) == thrice(1, 2)


def test_a_failed_sync_is_never_retried_and_trusted() -> None:
    """After it the file gets no sync any more, and what is written later is safe elsewhere."""
    machine = SimulatedMachine()
    session = Session(machine, "interval")
    session.step(1)
    left = live_name(session)
    broken(machine, left)
    with pytest.raises(UnsyncedError):
        session.flush()
    before = len(machine.calls)
    session.step(2)
    session.flush()
    session.save(2)

    synced = [call.path.name for call in machine.calls[before:] if call.kind == "sync_data"]
    assert left not in synced
    machine.power_cut(min)
    assert steps_in(machine)[-3:] == thrice(2)


def test_what_is_told_of_a_failed_sync_is_safe_itself() -> None:
    """Under `interval` the note is on the medium when the flush returns."""
    machine = SimulatedMachine()
    session = Session(machine, "interval")
    session.step(1)
    broken(machine, live_name(session))
    with pytest.raises(UnsyncedError):
        session.flush()
    machine.power_cut(min)

    assert [detail["segment"] for detail in told(machine)] == [1]


def test_a_checkpoint_whose_sync_fails_has_its_snapshot_all_the_same() -> None:
    """What can be read is better than nothing; the next flush tells that it may not be safe."""
    machine = SimulatedMachine()
    session = Session(machine, "checkpoint")
    session.step(1)
    broken(machine, live_name(session))
    sealed = session.save(1)
    with pytest.raises(UnsyncedError):
        session.flush()
    session.flush()

    assert sealed.records == 3
    assert session.run.snapshot_records(session.run.checkpoints()[0]) == 3
    assert [detail["segment"] for detail in told(machine)] == [1]
    session.step(2)
    assert session.save(2).segment == 2
    assert steps_in(machine) == thrice(1, 2)


def test_a_feed_goes_on_under_another_lane_name() -> None:
    """Both files are read; the one that failed is not synced again, nor written."""
    machine = SimulatedMachine()
    session = Session(machine, "interval")
    session.step(1)
    session.flush()
    session.step(2)
    for _ in range(2):
        feed = session.sink._feeds[FEED]
        broken(machine, feed.writer.path.name)
        with pytest.raises(UnsyncedError, match=r"completions\..*could not be synced"):
            session.flush()
        session.step(3)
    session.flush()
    session.end()

    assert session.run.lanes(FEED) == ["rank0", "rank0-2", "rank0-3"]
    assert sorted(steps_in(machine, FEED)) == thrice(1, 2, 3, 3)
    assert [d["file"] for d in told(machine, FEED)] == [
        "completions.jsonl",
        "completions.rank0-2.jsonl",
    ]


def test_names_that_may_not_be_safe_are_told_as_well() -> None:
    """A directory cannot be left; its failed sync is reported and not repeated."""
    machine = SimulatedMachine()
    session = Session(machine, "checkpoint")
    session.step(1)
    kinds = frozenset({"sync"})
    machine.fail(Fault(error=errno.EIO, kinds=kinds, under=ROOT / "history"))
    session.save(1)
    with pytest.raises(UnsyncedError, match=r"history.*could not be synced"):
        session.flush()
    session.flush()

    assert [detail["file"] for detail in told(machine)] == ["history"]


def test_a_checkpoint_that_was_deleted_meanwhile_needs_no_sync() -> None:
    """Its names went with it."""
    machine = SimulatedMachine()
    session = Session(machine, "checkpoint")
    session.step(1)
    gone = ROOT / "checkpoint-1"
    machine.fail(
        Fault(
            kinds=frozenset({"sync"}), under=ROOT, meanwhile=lambda: machine.remove(gone), times=1
        )
    )
    session.save(1)
    session.flush()

    assert steps_in(machine) == thrice(1)


def test_leaving_a_file_is_done_again_before_the_next_write() -> None:
    """If the fresh segment cannot be made at once, no record goes into the doubtful one."""
    machine = SimulatedMachine()
    session = Session(machine, "interval")
    session.step(1)
    broken(machine, live_name(session))
    kinds = frozenset({"rename"})
    live = ".sae_features.live.jsonl.00002.tmp"
    machine.fail(Fault(error=errno.ENOSPC, kinds=kinds, under=ROOT / live))
    for _ in range(2):
        with pytest.raises(UnsyncedError):
            session.flush()
    session.flush()
    session.step(2)

    assert [(f.segment, f.label) for f in session.run.history()] == [(1, "unsynced")]
    assert steps_in(machine) == thrice(1, 2)
    session.end()
    assert not machine.descriptors


def test_a_loss_that_could_not_be_told_is_told_in_the_file_that_goes_on() -> None:
    """What the doubtful file has lost and torn is a gap in the next one."""
    machine = SimulatedMachine()
    session = Session(machine, "interval")
    session.step(1)
    left = live_name(session)
    machine.fail(Fault(kinds=frozenset({"write"}), under=ROOT / left, taken=20))
    full = Fault(error=errno.ENOSPC, kinds=frozenset({"write"}), under=ROOT / left, times=None)
    machine.fail(full)
    with pytest.raises(WriteLostError):
        session.step(2)
    broken(machine, left)
    with pytest.raises(UnsyncedError):
        session.flush()
    drive(session.sink.write(make_append(make_record(step=3))))

    deliveries = drain(RunSource(seen(machine), start="start"))
    assert [record.step for record in records_in(deliveries)] == [1, 1, 1, 3]
    assert sum(d.records for d in deliveries if isinstance(d, Gap)) == 3


def test_a_failed_sync_at_the_end_is_told_to_the_owner() -> None:
    """Closing releases every file and says what may not be safe."""
    machine = SimulatedMachine()
    session = Session(machine, "checkpoint")
    session.step(1)
    broken(machine, "completions.jsonl")
    with pytest.raises(UnsyncedError, match=r"completions\.jsonl"):
        session.end()

    assert not machine.descriptors


@pytest.mark.parametrize("control_lines", [True, False])
def test_a_run_with_a_failed_sync_is_resumed_like_any_other(*, control_lines: bool) -> None:
    """The lineage of a checkpoint goes through what was left, and a rewind takes that along."""
    machine = SimulatedMachine()
    session = Session(machine, "interval", control_lines=control_lines)
    for step in (1, 3):
        session.step(step)
        broken(machine, live_name(session))
        with pytest.raises(UnsyncedError):
            session.flush()
        session.step(step + 1)
        session.save(step + 1)
    machine._processes[0].kill()

    labels = [file.label for file in seen(machine).history()]
    assert labels == ["unsynced", "checkpoint-2", "unsynced", "checkpoint-4"]
    assert steps_in(machine) == thrice(1, 2, 3, 4)
    if not control_lines:
        return
    again = Session(machine, "interval", continues="checkpoint-4")
    again.step(5)
    assert steps_in(machine) == thrice(1, 2, 3, 4, 5)
    again.end()
    rewound = Session(machine, "interval", continues="checkpoint-2")
    rewound.step(3)
    assert steps_in(machine) == thrice(1, 2, 3)


def test_reading_behind_the_last_checkpoint_begins_right_behind_it() -> None:
    """Also where the live tail is not the first segment after it."""
    machine = SimulatedMachine()
    session = Session(machine, "interval")
    session.step(1)
    session.save(1)
    session.step(2)
    broken(machine, live_name(session))
    with pytest.raises(UnsyncedError):
        session.flush()
    session.step(3)

    newest = RunSource(seen(machine), start="checkpoint")
    assert [record.step for record in records_in(drain(newest))] == thrice(2, 3)


# -- through the recorder -------------------------------------------------------------------------


def test_a_failed_sync_is_counted_and_costs_no_record() -> None:
    """Statistics show the error; nothing was dropped, since everything can be read."""
    machine = SimulatedMachine()
    machine.fail(Fault(error=errno.EIO, kinds=frozenset({"sync_data"})))
    recorder = Recorder(JournalSink(seen(machine), durability="interval"), flush_every_s=3600)
    batch = make_append(make_record())

    class Batch:
        stream, records, size_bytes, step, pass_ = "sae_features", 1, 100, 1, None

        def encode(self) -> bytes:
            return batch.data

        def release(self) -> None:
            """Hold nothing."""

    recorder.emit(Batch())
    assert not recorder.flush()
    recorder.emit(Batch())
    assert recorder.flush()
    recorder.close()

    statistics = recorder.statistics()
    assert (statistics.records_written, statistics.records_dropped, statistics.errors) == (2, 0, 1)
    assert "could not be synced: Input/output error" in (statistics.last_error or "")
    assert steps_in(machine) == [1, 1]
