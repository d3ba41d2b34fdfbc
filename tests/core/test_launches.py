from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aegir_stream.launches import Launch, LaunchEntry, launches_in
from aegir_stream.layout import RunDirectory
from aegir_stream.processes import this_process
from aegir_stream.testing import ManualClock


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with a manifest."""
    run = RunDirectory.at(tmp_path)
    run.write_manifest({"run_id": "r", "attempts": []})
    return run


def launch(run: RunDirectory, clock: ManualClock, **options: Any) -> Launch:
    """Return a launch of this process."""
    return Launch(run, clock=clock, read=run.read_manifest, **options)


def test_an_entry_says_which_process_began_when(run: RunDirectory) -> None:
    """And what else it is given; nothing says yet how it ended."""
    launch(run, ManualClock(7.0), facts={"attempt": 3}, total=40).enter({"model": "m"})

    manifest = run.read_manifest()
    assert (manifest["model"], manifest["attempts"][0]["attempt"]) == ("m", 3)
    (entry,) = launches_in(manifest)
    assert entry.process == this_process()
    assert (entry.started_at, entry.total) == (7.0, 40)
    assert (entry.ended_at, entry.status) == (None, None)


def test_an_entry_is_made_once_and_ended_in_its_place(run: RunDirectory) -> None:
    """Entering it again changes nothing, not even the file."""
    clock = ManualClock(7.0)
    first, second = launch(run, clock, facts={"attempt": 1}), launch(run, clock)
    first.enter()
    second.enter()
    inode = run.manifest_path.stat().st_ino
    first.enter()
    assert run.manifest_path.stat().st_ino == inode
    clock.advance(2.0)
    first.end("failed")

    entries = launches_in(run.read_manifest())
    assert [(e.started_at, e.ended_at, e.status) for e in entries] == [
        (7.0, 9.0, "failed"),
        (7.0, None, None),
    ]


def test_an_entry_that_was_lost_is_made_up_for_at_the_end(run: RunDirectory) -> None:
    """Another writer may have replaced the manifest meanwhile."""
    one = launch(run, ManualClock(7.0))
    one.enter()
    run.write_manifest({"run_id": "r"})
    one.end("finished")

    assert [entry.status for entry in launches_in(run.read_manifest())] == ["finished"]


@pytest.mark.parametrize("attempts", [None, 7, "x", {"pid": 1}, [7], ["x"], [{"pid": "x"}]])
def test_damaged_entries_are_left_out(attempts: object) -> None:
    """Those that can be read are read."""
    good = {"host": "h", "pid": os.getpid(), "unheard": True}
    entries = [*attempts, good] if isinstance(attempts, list) else attempts

    found = launches_in({"attempts": entries})
    assert found == ([LaunchEntry(host="h", pid=os.getpid())] if isinstance(entries, list) else [])
    assert launches_in({}) == []
