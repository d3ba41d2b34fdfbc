from __future__ import annotations

import errno
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.config import P5Cfg
from aegir_stream.disk import Disk, Reading
from aegir_stream.errors import RunNotFoundError, StepError, UnreadableRunError
from aegir_stream.events import Completion, GRPOMetrics, Progress
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import Replayed, follow, read_events, replay
from aegir_stream.sinks import JournalSink
from aegir_stream.testing import make_record
from aegir_stream.typing import Append, View
from aegir_stream.views import Heatmap, HeatmapView, LossVsRewardView, RunStateView
from core.runs import Life, act, deeds, drive, lived


class FaultyDisk(Disk):
    """A disk on which what stands under a name cannot be read; keeps the threads that asked.

    With `once` only that reading of it fails, counted from 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broken = ""
        self.once: int | None = None
        self.threads: set[int] = set()

    def _try(self, path: Path) -> None:
        self.threads.add(threading.get_ident())
        if path.name != self.broken:
            return
        if self.once is not None:
            self.once -= 1
        if self.once in {None, -1}:
            raise OSError(errno.EIO, "Input/output error", str(path))

    def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Reading:
        """Look at a file, if it is not the broken one."""
        self._try(path)
        return super().read(path, offset=offset, size=size, head=head)

    def names(self, directory: Path) -> list[str]:
        """List a directory, if it is not the broken one."""
        self._try(directory)
        return super().names(directory)


def faulty(path: Path) -> tuple[RunDirectory, FaultyDisk]:
    """Return a run seen through a disk that may fail."""
    disk = FaultyDisk()
    return RunDirectory(P5Cfg(output_dir=str(path)), disk=disk), disk


def folded(view: Any, events: Any) -> Any:
    """Return the state after all events at once."""
    return view.fold(view.initial(), events)


def append(stream: str, *events: msgspec.Struct) -> Append:
    """Return an append of any events."""
    return Append(stream=stream, data=b"".join(map(codec.encode, events)), records=len(events))


@settings(max_examples=50)
@given(deeds)
def test_a_replay_counts_no_step_twice(script: list[tuple[str, int]]) -> None:
    """A replay folds the surviving records, each once, whatever was killed and resumed."""
    with lived(script) as life:
        replayed = replay(life.run, HeatmapView())

        assert replayed.state == folded(HeatmapView(), life.surviving)
        assert replayed.events == len(life.surviving)


@settings(max_examples=40)
@given(deeds, deeds)
def test_going_on_from_a_saved_state_equals_starting_over(
    earlier: list[tuple[str, int]], later: list[tuple[str, int]]
) -> None:
    """Resuming from (state, cursors) gives what a replay from the start gives, rewound or not."""
    with lived(earlier) as life:
        saved = msgspec.json.encode(replay(life.run, HeatmapView()))
        for deed in later:
            act(life, deed)
        loaded = msgspec.json.decode(saved, type=Replayed[Heatmap])
        resumed = replay(life.run, HeatmapView(), after=loaded)

        assert resumed.state == replay(life.run, HeatmapView()).state


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6))
def test_folding_in_any_chunks_gives_the_same_state(chunks: list[list[int]]) -> None:
    """How records arrive makes no difference to a view."""
    view, state = HeatmapView(), HeatmapView().initial()
    for chunk in chunks:
        state = view.fold(state, [make_record(step=n % 3, token=n) for n in chunk])

    everything = [make_record(step=n % 3, token=n) for chunk in chunks for n in chunk]
    assert state == folded(view, everything)


@pytest.mark.anyio
async def test_following_ends_in_the_state_of_a_replay(tmp_path: Path) -> None:
    """Folding live equals replaying, across a checkpoint and a resume that rewinds."""
    life = Life(RunDirectory.at(tmp_path))
    deeds_done = iter([("step", 3), ("save", 0), ("step", 2), ("crash", 20), ("step", 4)])
    with anyio.fail_after(20):
        async with aclosing(follow(life.run, HeatmapView())) as states:
            async for replayed in states:
                if replayed.state == folded(HeatmapView(), life.surviving):
                    deed = next(deeds_done, None)
                    if deed is None:
                        break
                    act(life, deed)
                    if deed[0] == "save":
                        act(life, ("step", 1))

    assert replay(life.run, HeatmapView()).state == folded(HeatmapView(), life.surviving)


def resumed_feed(path: Path) -> RunDirectory:
    """Return a run whose second attempt ran the steps behind the second again."""
    run = RunDirectory.at(path)
    for continues, steps in ((None, (1, 2, 3, 4)), ("checkpoint-2", (3, 4, 5))):
        sink = JournalSink(run, continues=continues)
        drive(sink.open())
        for step in steps:
            loss = step + (10.0 if continues else 0.0)
            drive(sink.write(append("grpo_metrics", GRPOMetrics(step=step, ts=0.0, loss=loss))))
        drive(sink.aclose())
    return run


def test_feeds_leave_out_what_was_rewound(tmp_path: Path) -> None:
    """Steps that an attempt ran again count once, in the streams that checkpoints do not seal."""
    run = resumed_feed(tmp_path)

    surviving = [(m.step, m.loss) for m in read_events(run, "grpo_metrics")]
    assert surviving == [(1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0), (5, 15.0)]
    assert len(list(read_events(run, "grpo_metrics", attempts="all"))) == 7


@pytest.mark.parametrize("reading", range(4))
def test_a_failure_at_any_moment_counts_no_step_twice(tmp_path: Path, reading: int) -> None:
    """Whichever look at a file fails, the reader says so."""
    resumed_feed(tmp_path)
    run, disk = faulty(tmp_path)
    disk.broken, disk.once = "grpo_metrics.jsonl", reading

    with pytest.raises(UnreadableRunError, match=r"Input/output error"):
        list(read_events(run, "grpo_metrics"))


def test_until_folds_up_to_a_step_or_checkpoint(tmp_path: Path) -> None:
    """`until` scrubs a run back to a step, or to the checkpoint saved there."""
    life = Life(RunDirectory.at(tmp_path))
    for _ in range(4):
        life.record_step()
        life.save()

    by_step = replay(life.run, HeatmapView(), until=2)
    by_name = replay(life.run, HeatmapView(), until="checkpoint-2")

    assert by_step.state == by_name.state == folded(HeatmapView(), life.surviving[:6])
    with pytest.raises(StepError, match="yesterday"):
        replay(life.run, HeatmapView(), until="yesterday")


def test_a_result_up_to_a_step_is_not_gone_on_from(tmp_path: Path) -> None:
    """Going on with another `until`, or with other attempts, leaves nothing out."""
    life = Life(RunDirectory.at(tmp_path))
    for _ in range(3):
        life.record_step()
    life.save()
    life.record_step()
    life.kill()
    life.resume("checkpoint-3")
    run, view = life.run, HeatmapView()

    resumed = replay(run, view, after=replay(run, view, until=1))
    assert resumed == replay(run, view)
    assert replay(run, view, until=2, after=resumed) == replay(run, view, until=2)
    everything = replay(run, view, after=replay(run, view), attempts="all")
    assert everything == replay(run, view, attempts="all")
    assert everything.events == len(life.everything)


def test_a_lane_that_did_not_come_back_is_cut_as_well(tmp_path: Path) -> None:
    """A resume with fewer processes rewinds the lanes of all."""
    run = RunDirectory.at(tmp_path)
    lives = [Life(run, rank=rank) for rank in (0, 1)]
    for life in lives:
        life.record_step(1)
        life.save()
        life.record_step(1)
        life.kill()
    lives[0].resume("checkpoint-1")
    lives[0].record_step(1)

    assert sorted(record.step for record in read_events(run, "sae_features")) == [1, 1, 2]
    assert len(list(read_events(run, "sae_features", attempts="all"))) == 5


def test_the_last_row_of_an_iteration_counts(tmp_path: Path) -> None:
    """Nothing marks a resume in `progress`, so every row is read, and the view takes the last."""
    run = RunDirectory.at(tmp_path)
    for continues, rows in ((None, (1, 2, 3)), ("checkpoint-2", (3,))):
        sink = JournalSink(run, continues=continues)
        drive(sink.open())
        for i in rows:
            row = Progress(iter=i, score=9.0 if continues else float(i))
            drive(sink.write(append("progress", row)))
        drive(sink.aclose())

    assert [row.iter for row in read_events(run, "progress")] == [1, 2, 3, 3]
    assert replay(run, RunStateView()).state.curve == [(1, 1.0), (2, 2.0), (3, 9.0)]


@pytest.mark.parametrize("broken", ["history", "00002-checkpoint-2.jsonl", "grpo_metrics.jsonl"])
def test_a_replay_is_whole_or_fails(tmp_path: Path, broken: str) -> None:
    """What cannot be read is named instead of being left out."""
    life = Life(RunDirectory.at(tmp_path))
    drive(life.sink.write(append("grpo_metrics", GRPOMetrics(step=1, ts=0.0))))
    for _ in range(2):
        life.record_step()
        life.save()
    run, disk = faulty(tmp_path)
    disk.broken = broken
    sealed = not broken.startswith("grpo")
    view: View[Any] = HeatmapView() if sealed else RunStateView()

    with pytest.raises(UnreadableRunError, match=rf"{broken}.*Input/output error.*chmod"):
        replay(run, view)
    with pytest.raises(UnreadableRunError, match=r"Input/output error"):
        list(read_events(run, "sae_features" if sealed else "grpo_metrics", attempts="all"))


@pytest.mark.anyio
@pytest.mark.parametrize("broken", ["history", "00002-checkpoint-2.jsonl"])
async def test_following_waits_for_what_cannot_be_read(tmp_path: Path, broken: str) -> None:
    """A disk that fails for a while ends no fold, and is never waited for on the event loop."""
    life = Life(RunDirectory.at(tmp_path))
    for _ in range(2):
        life.record_step()
        life.save()
    run, disk = faulty(tmp_path)
    disk.broken = broken

    with anyio.fail_after(20):
        async with aclosing(follow(run, HeatmapView())) as states:
            async for replayed in states:
                disk.broken = ""
                if replayed.state == folded(HeatmapView(), life.surviving):
                    break

    assert threading.get_ident() not in disk.threads


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    """The error names the directory and what to do."""
    with pytest.raises(RunNotFoundError, match=r"nowhere.*AEGIR_P5_OUTPUT_DIR"):
        replay(RunDirectory.at(tmp_path / "nowhere"), HeatmapView())


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    """A replay says how many lines it could not read."""
    life = Life(RunDirectory.at(tmp_path))
    life.record_step()
    with life.run.live("sae_features").open("ab") as file:
        file.write(b"garbage\n")

    replayed = replay(life.run, HeatmapView())

    assert (replayed.events, replayed.skipped) == (3, 1)


def test_loss_meets_reward_by_completion(tmp_path: Path) -> None:
    """The mean loss of a completion's tokens stands against its own reward."""
    run = RunDirectory.at(tmp_path)
    sink = JournalSink(run)
    drive(sink.open())
    for completion, reward in enumerate((0.0, 0.5, 1.0)):
        joined = Completion(
            step=1,
            completion=completion,
            rank=0,
            group=0,
            rewards={"verifier": reward},
            reward=reward,
            advantage=0.0,
            length=2,
            terminated=True,
        )
        drive(sink.write(append("completions", joined)))
        tokens = [
            msgspec.structs.replace(
                make_record(token=token, completion=completion),
                reconstruction_loss=10.0 - 4 * reward + token,
            )
            for token in range(2)
        ]
        drive(sink.write(append("sae_features", *tokens)))
    drive(sink.aclose())

    state = replay(run, LossVsRewardView()).state

    assert [(p.loss, p.reward) for p in state.points()] == [(10.5, 0.0), (8.5, 0.5), (6.5, 1.0)]
    assert state.correlation(0) == pytest.approx(-1.0)
    assert state.correlation(1) is None


def test_run_state_takes_the_last_row_of_an_iteration() -> None:
    """Repeated and disordered iterations count once, and the best score is a finite one."""
    rows = [
        Progress(iter=2, score=0.5),
        Progress(iter=1, score=float("nan")),
        Progress(iter=3, score=None),
        Progress(iter=2, score=0.25),
    ]
    state = folded(RunStateView(), rows)

    assert (state.iteration, state.best, state.curve) == (3, 0.25, [(2, 0.25)])


def test_capture_share_is_cost_over_step_time() -> None:
    """The share counts only steps whose time is known."""
    rows = [
        GRPOMetrics(step=1, ts=0.0, step_ms=100.0, capture_ms=4.0, write_ms=1.0),
        GRPOMetrics(step=2, ts=0.0, step_ms=100.0, capture_ms=6.0, write_ms=1.0),
        GRPOMetrics(step=3, ts=0.0, capture_ms=50.0),
    ]

    assert folded(RunStateView(), rows).capture_share == pytest.approx(0.06)
