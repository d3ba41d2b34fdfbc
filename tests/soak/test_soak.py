from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from soak.large import CROWD
from soak.rounds import Soak, plan
from soak.sockets import stall

TESTS = Path(__file__).parents[1]


def test_the_decisions_of_a_soak_follow_from_its_seed() -> None:
    """The same seed and round give the same lives; another seed gives others."""
    assert plan(7, 3) == plan(7, 3)
    assert plan(7, 3) != plan(8, 3)
    assert plan(7, 3) != plan(7, 4)


def test_two_rounds_are_passed(tmp_path: Path) -> None:
    """Lives that are killed, resumed and starved of disk lose and double nothing for any reader."""
    soak = Soak(tmp_path / "run", seed=7)
    try:
        results = [soak.round(number) for number in (1, 2)]
    finally:
        soak.close()

    assert sum(result.kills for result in results) > 0
    assert results[-1].lost > 0


def test_a_soak_that_fails_says_how_to_see_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code tells, the last line names seed and round, and the run is left behind."""
    from soak import __main__ as program  # noqa: PLC0415 - a program is imported to be broken

    monkeypatch.setattr("soak.rounds.GROWTH_MIB", -1e6)
    options = ["--seed", "5", "--rounds", "1", "--minutes", "0", "--no-large"]

    assert program.main([*options, "--directory", str(tmp_path)]) == 1

    (left,) = tmp_path.iterdir()
    assert (left / "run" / "aegir_run.json").exists()
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"again with: --seed 5 --rounds 1 --no-large; left behind: {left}"
    )


def test_forty_browsers_that_stopped_reading_cost_the_server_little(tmp_path: Path) -> None:
    """What they did not take is not kept for them, and when they go on they get all of it."""
    served = stall(tmp_path, clients=CROWD // 5, mib=4)

    assert served.peak_mib - served.baseline_mib < 64


def test_the_program_ends_well(tmp_path: Path) -> None:
    """One round of the program itself, as `make soak` starts it, and nothing is left behind."""
    command = [sys.executable, "-W", "error", "-m", "soak", "--no-large", "--minutes", "0"]
    done = subprocess.run(
        [*command, "--seed", "3", "--rounds", "1", "--directory", str(tmp_path)],
        check=False,
        cwd=TESTS,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "round   1:" in done.stdout
    assert not [*tmp_path.iterdir()]
