from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aegir_stream.batch import Events
from aegir_stream.errors import UnreadableRunError
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import Holder, Holding, Lease, LeaseHeldError, lease_of
from aegir_stream.processes import Process, descends_from, this_process
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import JournalSink
from aegir_stream.testing import ManualClock, make_record
from system.processes import PATIENCE_S, Listener, run_apart, start


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory that is not there yet."""
    return RunDirectory.at(tmp_path / "new" / "run")


def hold_until_told(directory: str) -> None:
    """Take the lease, say so, and keep it until standard input ends."""
    with Lease.take(RunDirectory.at(directory)):
        say("held")
        sys.stdin.read()


def record_until_told(directory: str) -> None:
    """Write a log without any lease, as a script with nothing but the callback does."""
    recorder = Recorder(JournalSink(RunDirectory.at(directory)))
    recorder.emit(Events("sae_features", (make_record(),), step=1))
    assert recorder.flush()
    say("recorded")
    sys.stdin.read()
    recorder.close()


def try_to_take(directory: str) -> None:
    """Take the lease and release it, or say who has it."""
    try:
        Lease.take(RunDirectory.at(directory)).release()
    except LeaseHeldError as error:
        say(str(error))
    else:
        say("taken")


def take_and_have_a_child_take_it(directory: str) -> None:
    """Take the lease, and let a process that we start take it as well."""
    with Lease.take(RunDirectory.at(directory)):
        sys.stdout.write(run_apart(try_to_take, directory).decode())
    say(lease_of(RunDirectory.at(directory)).held)


def fork_and_die(directory: str) -> None:
    """Take the lease, fork a child that lives on, and end without releasing anything."""
    lease = Lease.take(RunDirectory.at(directory))
    if os.fork() == 0:
        say(f"a child lives, and has {lease}")
        sys.stdin.read()
    else:
        os.kill(os.getpid(), 9)


@contextlib.contextmanager
def running(function: Callable[[str], None], run: RunDirectory) -> Iterator[Listener]:
    """Call a function in a process of its own; go on once it has said something."""
    process = start(function, run.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    listener = Listener(process)
    assert process.stdin
    try:
        listener.wait_for_lines(1)
        yield listener
    finally:
        process.stdin.close()
        listener.stop()


def say(what: object) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def test_a_second_trainer_is_refused_and_told_of_the_first(run: RunDirectory) -> None:
    """Process, host, time and directory of the first are named, and the variable to use."""
    with running(hold_until_told, run) as first:
        with pytest.raises(LeaseHeldError) as refused:
            Lease.take(run)
        assert refused.value.holder
        assert refused.value.holder.process.pid == first.process.pid
        for part in (
            str(first.process.pid),
            os.uname().nodename,
            "UTC in",
            str(Path(__file__).parents[1]),
        ):
            assert part in str(refused.value)
        assert "AEGIR_P5_OUTPUT_DIR=DIR" in str(refused.value)
        assert lease_of(run) == Holding(held=True, holder=refused.value.holder)


def test_the_lease_of_a_killed_trainer_is_free(run: RunDirectory) -> None:
    """Nothing has to be cleaned up after SIGKILL; who held it last can still be told."""
    with running(hold_until_told, run) as first:
        first.process.kill()
        first.process.wait(PATIENCE_S)

    holding = lease_of(run)
    assert not holding.held
    assert holding.holder
    assert holding.holder.process.pid == first.process.pid
    with Lease.take(run):
        assert lease_of(run).held


def test_a_forked_child_does_not_keep_the_lease_of_its_dead_parent(run: RunDirectory) -> None:
    """Loader processes may outlive a killed trainer for a while."""
    with running(fork_and_die, run) as first:
        first.process.wait(PATIENCE_S)
        assert run_apart(try_to_take, run.root) == b"taken\n"


def test_whoever_writes_the_log_holds_the_directory(run: RunDirectory) -> None:
    """A script that only records counts as its trainer; it is named by the manifest."""
    with running(record_until_told, run) as first:
        with pytest.raises(LeaseHeldError, match=f"process {first.process.pid} on"):
            Lease.take(run)
        assert lease_of(run).held
    Lease.take(run).release()


def test_what_the_holder_starts_is_granted_the_lease_too(run: RunDirectory) -> None:
    """A guard takes it for the command that it runs; the command's own taking is no conflict."""
    assert run_apart(take_and_have_a_child_take_it, run.root) == b"taken\nFalse\n"


def test_the_process_that_holds_it_may_take_it_again(run: RunDirectory) -> None:
    """A program may turn into another one that takes it itself; the first release counts."""
    first = Lease.take(run)
    with Lease.take(run) as second:
        assert second.fd is None
    assert lease_of(run).held
    first.release()
    first.release()
    assert not lease_of(run).held


def test_every_holder_leaves_a_line(run: RunDirectory) -> None:
    """A torn line before it is ended first, so the newest can always be read."""
    Lease.take(run, clock=ManualClock(now=1_000.0)).release()
    with run.lease_path.open("ab") as file:
        file.write(b'{"process":{"ho')
    Lease.take(run, clock=ManualClock(now=2_000.0)).release()

    lines = run.lease_path.read_bytes().splitlines()
    assert [json.loads(line)["since"] for line in (lines[0], lines[2])] == [1_000.0, 2_000.0]
    holder = lease_of(run).holder
    assert holder
    assert holder.since == 2_000.0
    assert holder.process == this_process()


@pytest.mark.parametrize("content", [b"", b"\0\0\n", b"\xff\xfe\n", b"[]\n", b'{"process":1}\n'])
def test_a_damaged_record_of_holders_stands_in_nobodys_way(
    run: RunDirectory, content: bytes
) -> None:
    """The lock decides; the lines only say who."""
    run.root.mkdir(parents=True)
    run.lease_path.write_bytes(content)

    assert lease_of(run) == Holding(held=False)
    Lease.take(run).release()


def test_a_holder_whose_line_is_damaged_is_refused_without_a_name(run: RunDirectory) -> None:
    """That somebody holds it is known all the same."""
    with running(hold_until_told, run):
        run.lease_path.write_bytes(b"gibberish\n")
        with pytest.raises(LeaseHeldError, match="in use by another process"):
            Lease.take(run)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """The error names the directory and the ways out."""
    (tmp_path / "file").write_text("")

    with pytest.raises(UnreadableRunError, match="AEGIR_P5_OUTPUT_DIR"):
        Lease.take(RunDirectory.at(tmp_path / "file" / "run"))


def test_a_trainer_whose_surroundings_are_odd_gets_the_lease(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a working directory that was removed nor an argument of odd bytes is in the way."""
    monkeypatch.setattr(sys, "argv", ["aegir", "train", "--prompts", os.fsdecode(b"data\xff")])
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with Lease.take(run):
        holder = lease_of(run).holder
    assert holder
    assert holder.directory is None
    assert holder.command == "aegir train --prompts 'data?'"


def test_looking_at_a_lease_makes_nothing(run: RunDirectory) -> None:
    """Nobody holds a directory that is not there."""
    assert lease_of(run) == Holding(held=False)
    assert not run.root.parent.exists()


def test_a_process_descends_from_those_that_started_it() -> None:
    """From itself and from those above it, not from its children or from others of their number."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        here = this_process()
        other = Process(host=here.host, pid=child.pid, namespace=here.namespace)
        assert descends_from(here)
        assert not descends_from(other)
        assert not descends_from(Process(host=here.host, pid=here.pid, started="another:1"))
        assert not descends_from(Process(host="elsewhere", pid=here.pid, started=here.started))
        child.kill()


def test_a_holder_says_what_is_known_of_it() -> None:
    """Nothing is made up for what is not known."""
    process = Process(host="node7", pid=4711)

    assert str(Holder(process=process)) == "process 4711 on node7"
    assert str(Holder(process=process, since=0.0, directory="/repo", command="aegir train")) == (
        "process 4711 on node7 (`aegir train`), started 1970-01-01 00:00:00 UTC in /repo"
    )
