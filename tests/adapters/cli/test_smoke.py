from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from aegir_adapters.mixing.smoke import load_config
from aegir_stream.events import StepMetrics
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events, replay
from aegir_stream.views.step_metrics import StepMetricsView

SMOKE = [sys.executable, "-m", "aegir_adapters.cli", "smoke", "mixing"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LEDGER = ("evictions", "false_evictions", "fresh_writes", "resident_entries")
ALONE = """
summary = "A run of one window."
alarms = ["stream_mixing/switch_rate"]
steps = 5
log_every = 5

[ledger]
capacity = 280

[[readers]]
name = "a"
weight = 1

[[readers]]
name = "b"
weight = 1
"""


def smoke(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*SMOKE, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=150
    )


def verdict_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the one line that it prints into a pipe."""
    (line,) = done.stdout.splitlines()
    verdict: dict[str, Any] = json.loads(line)
    return verdict


@pytest.mark.parametrize("name", ["healthy", "small_ledger", "collapsed_mix", "tiny_reader"])
def test_a_run_on_two_ranks_raises_exactly_its_alarms(name: str, tmp_path: Path) -> None:
    """Each fault drives its own metrics out of their bands and no other; the healthy run none."""
    config = load_config(name)
    done = smoke("--config", name, "--ranks", "2", "--output-dir", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    metrics = {metric["name"]: metric for metric in verdict_of(done)["metrics"]}
    assert {name for name, told in metrics.items() if told["out"]} == set(config.alarms)
    assert sum(told["band"] is not None for told in metrics.values()) == 11

    # The dashboard, which judges the newest window only, shows the same.
    run = RunDirectory.at(tmp_path / "run")
    assert replay(run, StepMetricsView()).state.alarms == sorted(config.alarms)
    _assert_the_ledger_adds_up(list(read_events(run, "step_metrics")))


def _assert_the_ledger_adds_up(events: list[StepMetrics]) -> None:
    """What came and did not go is there, over all ranks; `_max` is what one of two ranks has."""
    assert [event.step for event in events] == list(range(20, 321, 20))
    rows = [{n: event.metrics[f"ledger/{n}"] or 0.0 for n in LEDGER} for event in events]
    came = accumulate(row["fresh_writes"] - row["evictions"] for row in rows)
    assert [row["resident_entries"] for row in rows] == list(came)
    for event, row in zip(events, rows, strict=True):
        for name in LEDGER:
            largest = event.metrics[f"ledger/{name}_max"]
            assert largest is not None
            assert row[name] / 2 <= largest <= row[name]


def test_a_run_that_does_not_raise_its_alarm_fails(tmp_path: Path) -> None:
    """Exit code 1, and the table says which alarm is missing."""
    file = tmp_path / "own.toml"
    file.write_text(ALONE)
    program = (
        "import sys; sys.stdout.isatty = lambda: True\n"
        f"sys.argv = ['aegir', 'smoke', 'mixing', '--ranks', '1', '--config', {str(file)!r}]\n"
        "from aegir_adapters.cli import main\n"
        "if __name__ == '__main__': main()"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1, done.stderr[-2000:]
    lines = ESCAPES.sub("", done.stdout).splitlines()
    row = next(line for line in lines if "switch_rate" in line)
    assert row.split()[-2:] == ["no", "alarm"]
    assert lines[-1].startswith("Not as expected: 0 metrics")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nope"], "Expected a configuration (healthy, collapsed_mix"),
        (["--ranks", "3"], "Expected a number of ranks that divides 16 shards, got `3`"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    """No traceback, and no process is started."""
    done = smoke(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert message in line
