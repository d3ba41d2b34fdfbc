from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aegir_stream.events import SAELogRecord
from aegir_stream.layout import RunDirectory
from core.runs import Life
from system.processes import Listener

DATA_ONLY = 'select(has("$log")|not)'


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run that has begun."""
    for tool in ("tail", "jq"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install {tool}")
    return Life(RunDirectory.at(tmp_path / "run"))


@contextlib.contextmanager
def piped(reader: list[str], *jq: str) -> Iterator[Listener]:
    """Run a reader of the log into jq; at the end the reader is stopped, and jq ends by itself."""
    with subprocess.Popen(reader, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reading:
        filtering = subprocess.Popen(
            ["jq", "--unbuffered", *jq], stdin=reading.stdout, stdout=subprocess.PIPE
        )
        assert reading.stdout is not None
        reading.stdout.close()
        listener = Listener(filtering)
        try:
            yield listener
            reading.terminate()
            listener.end()
        finally:
            reading.kill()
            listener.stop()


def tail(life: Life) -> list[str]:
    """Return the command that follows the live tail by its name."""
    return ["tail", "-n", "+1", "-F", str(life.run.live("sae_features"))]


def records(listener: Listener) -> list[SAELogRecord]:
    """Return what came out of jq."""
    return [msgspec.json.decode(line, type=SAELogRecord) for line in listener.lines]


def test_tail_and_jq_print_the_records_across_checkpoints(life: Life) -> None:
    """`tail -F | jq` prints every record once if it looks at least once between two checkpoints."""
    life.record_step()
    with piped(tail(life), "-c", DATA_ONLY) as printed:
        # It has opened the first segment.
        printed.wait_for_lines(len(life.surviving))
        for _ in range(6):
            for _ in range(5):
                life.record_step()
            life.save()
            life.record_step(1)
            # It has seen the segment that this checkpoint began.
            printed.wait_for_lines(len(life.surviving))
        life.finish()
    assert records(printed) == life.surviving


def test_jq_goes_on_behind_a_torn_line(life: Life) -> None:
    """With `fromjson?` a line that a kill tore costs nothing; what was rewound is printed too."""
    life.record_step()
    with piped(tail(life), "-cR", f"fromjson? | {DATA_ONLY}") as printed:
        printed.wait_for_lines(len(life.everything))
        life.save()
        life.record_step()
        printed.wait_for_lines(len(life.everything))
        life.kill(torn=b'{"step":9,"token_index":1,"la')
        life.resume("checkpoint-1")
        life.record_step()
        printed.wait_for_lines(len(life.everything))
        life.finish()
    assert records(printed) == life.everything
    assert len(life.surviving) < len(life.everything)


def test_aegir_tail_misses_no_segment_however_quickly_they_follow(life: Life) -> None:
    """Where `tail -F` may miss the segments between two looks, `aegir tail` reads them all."""
    life.record_step()
    reader = [sys.executable, "-m", "aegir_adapters.cli", "tail", str(life.run.root)]
    with piped([*reader, "--from", "start"], "-c", ".") as printed:
        printed.wait_for_lines(1)
        for _ in range(60):
            life.record_step()
            life.save()
        life.finish()
        printed.wait_for_lines(len(life.surviving))
    assert records(printed) == life.surviving
