"""The state machine of the log, with many more examples than the tests try."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from soak.oracle import SoakError

__all__ = ["try_machine"]

TESTS = Path(__file__).parents[1]
EXAMPLES = 100

TRY = """
import sys
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from core.test_log_machine import LogMachine

machine = seed(int(sys.argv[1]))(LogMachine)
run_state_machine_as_test(
    machine,
    settings=settings(
        max_examples=int(sys.argv[2]),
        stateful_step_count=50,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    ),
)
"""


def try_machine(seed: int, *, seconds: float) -> int:
    """Try scripts for so long, a hundred at a time; return how many.

    Raises:
        SoakError: one of them broke a law of the log.
    """
    if not (TESTS / "core" / "test_log_machine.py").exists():
        return 0
    tried, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        command = [sys.executable, "-c", TRY, str(seed + tried), str(EXAMPLES)]
        done = subprocess.run(
            command, check=False, cwd=TESTS, capture_output=True, text=True, timeout=1800
        )
        if done.returncode:
            raise SoakError(f"the state machine with seed {seed + tried}:\n{done.stderr[-6000:]}")
        tried += EXAMPLES
    return tried
