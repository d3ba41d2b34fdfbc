from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from msgspec.structs import replace

from aegir_stream.processes import Process, is_alive, process_of, started_at, this_process


def test_this_process_is_alive() -> None:
    """The process that asks is proven to live."""
    assert is_alive(this_process()) is True


def test_a_process_that_has_ended_is_proven_dead() -> None:
    """Before its parent has asked for its exit code as well as afterwards."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        one = replace(this_process(), pid=child.pid, started=None)
        assert is_alive(one) is None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_alive(one) is False
        child.wait()
        assert is_alive(one) is False


def test_a_process_is_known_by_its_number() -> None:
    """As long as it is there: which process it is, and when it started, to a second."""
    before = time.time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        known, started = process_of(child.pid), started_at(child.pid)
        assert is_alive(known) is True
        assert known.started != this_process().started
        # The kernel tells the time of the boot in whole seconds.
        assert started is not None
        assert before - 1.1 <= started <= time.time() + 0.1
        child.communicate()
    assert is_alive(known) is False
    assert process_of(child.pid).started is None
    assert started_at(child.pid) is None


def test_a_later_process_of_the_same_number_is_another() -> None:
    """The time of its start tells it apart."""
    assert is_alive(replace(this_process(), started="another boot:1")) is False


def test_processes_of_other_hosts_and_containers_cannot_be_judged() -> None:
    """Their numbers mean nothing here."""
    here = this_process()

    assert is_alive(replace(here, host="elsewhere")) is None
    assert is_alive(replace(here, namespace="pid:[1]")) is None


@pytest.mark.parametrize("pid", [0, -1, pytest.param(-os.getpid(), id="own"), 2**31, 10**30])
def test_numbers_that_no_process_has_prove_nothing(pid: int) -> None:
    """To signal them would mean whole groups of processes, or fail."""
    assert is_alive(replace(this_process(), pid=pid)) is None


def test_a_system_without_proc_tells_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """That no process has the number is a proof still; that one has it is none."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    monkeypatch.setattr("aegir_stream.processes._fields", lambda _: [])
    monkeypatch.setattr("aegir_stream.processes._namespace", lambda _: None)
    here = Process(host=os.uname().nodename, pid=os.getpid())

    assert is_alive(here) is None
    assert is_alive(replace(here, pid=child.pid)) is False
