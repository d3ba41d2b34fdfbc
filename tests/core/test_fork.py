from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink
from aegir_stream.source import RunSource
from core.runs import attempts, drain, drive, records_in


def test_a_child_forked_while_a_lock_is_held_does_not_hang() -> None:
    """Whatever the parent's threads held at the fork, every method returns in the child."""
    program = (
        "import os, threading\n"
        "from aegir_stream import Events, MemorySink, Recorder\n"
        "from aegir_stream.testing import make_record\n"
        "recorder = Recorder(MemorySink())\n"
        "held, done = threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with recorder._lock, recorder._account._lock, recorder._backlog._changed:\n"
        "        held.set()\n"
        "        done.wait()\n"
        "threading.Thread(target=hold).start()\n"
        "held.wait()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert recorder.shield(lambda: 1 / 0) is None\n"
        "    assert recorder.statistics().errors == 1\n"
        "    assert not recorder.emit(Events('sae_features', (make_record(),)))\n"
        "    assert recorder.close()\n"
        "    os._exit(7)\n"
        "status = os.waitpid(pid, 0)[1]\n"
        "done.set()\n"
        "assert status == 7 << 8\n"
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    subprocess.run(command, check=True, timeout=20, env=os.environ)


def test_a_forked_child_records_nothing(tmp_path: Path) -> None:
    """In a forked child the recorder is a no-op: no line twice, no hang at exit."""
    program = (
        "import os, sys\n"
        "from aegir_stream import Events, JournalSink, Recorder, RunDirectory\n"
        "from aegir_stream.testing import make_record\n"
        "recorder = Recorder(JournalSink(RunDirectory.at(sys.argv[1])))\n"
        "recorder.emit(Events('sae_features', (make_record(),)))\n"
        "recorder.flush()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert not recorder.emit(Events('sae_features', (make_record(),)))\n"
        "    assert not recorder.flush()\n"
        "    assert recorder.close()\n"
        "    sys.exit(7)\n"
        "assert os.waitpid(pid, 0)[1] == 7 << 8\n"
        "recorder.emit(Events('sae_features', (make_record(),)))\n"
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(tmp_path)]
    subprocess.run(command, check=True, timeout=60, env=os.environ)

    run = RunDirectory.at(tmp_path)
    assert len(records_in(drain(RunSource(run)))) == 2
    last = run.live("sae_features").read_bytes().splitlines()[-1]
    assert b'"stopped"' in last


def test_a_forked_child_does_not_keep_the_lane(tmp_path: Path) -> None:
    """A data loader's worker that outlives a killed trainer leaves the lane to the next attempt."""
    run = RunDirectory.at(tmp_path)
    program = (
        "import os, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from core.runs import Life\n"
        "from aegir_stream.layout import RunDirectory\n"
        "life = Life(RunDirectory.at(sys.argv[1]))\n"
        "life.record_step(5)\n"
        "if os.fork() == 0:\n"
        "    print(flush=True)\n"
        "    sys.stdin.read()\n"
        "os._exit(0)\n"
    )
    tests = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", program, str(run.root), tests]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline()
        assert trainer.wait() == 0
        resumed = JournalSink(run)
        assert attempts(resumed) == [2]
        drive(resumed.aclose())

    assert run.lanes("sae_features") == ["rank0"]
