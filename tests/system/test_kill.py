from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from system.following import delivered, standing
from system.killing import Report
from system.processes import TESTS, following

SEED, KILLS = 20261123, 200


def test_a_run_survives_two_hundred_kills(tmp_path: Path) -> None:
    """What was promised is read exactly once and in order, however often its writer is killed.

    Nothing is invented, only the beginning of an append that was cut short may be there in
    addition, nothing is called corrupt but torn lines, and followers that were there all along see
    the same as who reads the run afterwards.
    """
    run = tmp_path / "run"
    with following(run) as features, following(run, "completions") as completions:
        program = [sys.executable, "-W", "error", "-m", "system.killing"]
        done = subprocess.run(
            [*program, str(run), str(SEED), str(KILLS)],
            cwd=TESTS,
            check=False,
            timeout=150,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr.decode()
        heard = {"sae_features": features.heard(), "completions": completions.heard()}
    report = msgspec.json.decode(done.stdout, type=Report)

    print(f"{report.seconds:.0f} s, {report.counts}")  # noqa: T201 - pytest shows it with -rP
    assert report.kills >= KILLS
    assert report.counts["torn lines"] > 0
    assert report.counts["resumed from a checkpoint that was not sealed"] > 0
    for stream, said in heard.items():
        assert delivered(said) == report.everything[stream]
        assert standing(said) == report.surviving[stream]
        assert not {each.kind for each in said} & {"Reset", "Stalled"}
