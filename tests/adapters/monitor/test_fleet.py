from __future__ import annotations

import json
from pathlib import Path

from aegir_adapters.monitor import Fleet, ordered
from aegir_stream.testing import ManualClock


def feed(run: Path, *scores: float) -> Path:
    """Append to a feed as a foreign program does."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "progress.jsonl"
    first = len(path.read_bytes().splitlines()) if path.exists() else 0
    rows = [{"iter": n, "score": score, "ts": 100.0 + n} for n, score in enumerate(scores, first)]
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return run


def names(fleet: Fleet) -> list[str]:
    """Return what the runs are called."""
    return [row.name for row in ordered(fleet.look(), "name")]


def test_runs_and_roots_are_named_as_they_were_given(tmp_path: Path) -> None:
    """A run goes by its name, one under a root by its setup and its name."""
    feed(tmp_path / "root" / "evolve" / "a", 1)
    feed(tmp_path / "root" / "single", 1)
    alone = feed(tmp_path / "alone", 1)

    assert names(Fleet([tmp_path / "root", alone])) == ["alone", "evolve/a", "single"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Names are as long as it takes, and no longer."""
    first, second = feed(tmp_path / "x" / "run", 1), feed(tmp_path / "y" / "run", 1)
    third = feed(tmp_path / "z" / "other", 1)
    feed(tmp_path / "deep" / "x" / "run", 1)

    assert names(Fleet([first, second, third])) == ["other", "x/run", "y/run"]
    assert names(Fleet([tmp_path / "deep", second, first])) == [
        "deep/x/run",
        f"{tmp_path.name}/x/run",
        "y/run",
    ]


def test_a_run_named_twice_is_shown_once(tmp_path: Path) -> None:
    """A run that is named, lies under a root, and is linked to, is one run."""
    run = feed(tmp_path / "root" / "evolve" / "a", 1)
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "root" / "evolve" / "latest").symlink_to(run)

    assert names(Fleet([tmp_path / "root", run, tmp_path / "link"])) == ["evolve/a"]


def test_runs_come_grow_and_go(tmp_path: Path) -> None:
    """Each look shows what is there now."""
    fleet = Fleet([tmp_path], clock=ManualClock(200.0))
    before = fleet.look()
    run = feed(tmp_path / "evolve" / "a", 1)
    came = fleet.look()
    feed(run, 5, 3)
    (grown,) = fleet.look()
    (run / "progress.jsonl").unlink()
    run.rmdir()

    assert before == []
    assert [row.standing.iteration for row in came] == [0]
    assert (grown.iteration, grown.score, grown.best) == ("2", "3.000", "5.000")
    assert grown.scores == [1.0, 5.0, 3.0]
    assert fleet.look() == []


def test_what_cannot_be_listed_is_said(tmp_path: Path) -> None:
    """Rows stay while a root cannot be listed, and it is said why they do not change."""
    run = feed(tmp_path / "open", 1)
    gone = tmp_path / "gone"
    feed(gone / "a", 1)
    fleet = Fleet([run, gone])
    before = names(fleet)
    gone.rename(tmp_path / "elsewhere")
    gone.symlink_to(gone)
    after, notes = names(fleet), fleet.notes
    gone.unlink()

    assert before == after == ["a", "open"]
    assert notes == [f"{gone} cannot be listed: Too many levels of symbolic links"]
    assert names(fleet) == ["open"]
    assert fleet.notes == []
