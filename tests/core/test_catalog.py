from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from aegir_stream.catalog import Catalog
from aegir_stream.disk import Disk
from aegir_stream.layout import RunDirectory
from aegir_stream.progress import ProgressFeed
from aegir_stream.testing import ManualClock


def feed(path: Path, *, ts: float | None = None, rows: int = 1) -> Path:
    """Write a feed of a run, as a foreign program does."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / "progress.jsonl").open("a") as file:
        for i in range(rows):
            row: dict[str, Any] = {"iter": i, "score": float(i)}
            file.write(json.dumps(row | ({} if ts is None else {"ts": ts + i})) + "\n")
    return path


def labels(catalog: Catalog) -> dict[str, list[str]]:
    """Return the names of the runs by setup."""
    return {setup.label: [run.root.name for run in setup.runs] for setup in catalog.setups()}


def test_runs_are_numbered_by_their_start(tmp_path: Path) -> None:
    """By the manifest, or by the first row; those that tell neither come first, by name."""
    feed(tmp_path / "s" / "late", ts=300.0)
    feed(tmp_path / "s" / "early", ts=100.0)
    run = RunDirectory.at(tmp_path / "s" / "middle")
    run.root.mkdir()
    run.write_manifest({"run_id": "r", "created_at": 200.0})
    for name in ("run-10", "run-9"):
        feed(tmp_path / "s" / name)
    (tmp_path / "t" / "only" / "checkpoint-50").mkdir(parents=True)
    catalog = Catalog(tmp_path)

    assert labels(catalog) == {
        "s": ["run-9", "run-10", "early", "middle", "late"],
        "t": ["only"],
    }
    assert (found := catalog.find("s", 2))
    assert found.root == tmp_path / "s" / "early"


def test_what_is_no_run_is_passed_over(tmp_path: Path) -> None:
    """Files, hidden directories, directories that hold something else, and what lies deeper."""
    feed(tmp_path / "s" / "run" / "nested")
    feed(tmp_path / "s" / "run")
    feed(tmp_path / ".hidden" / "run")
    feed(tmp_path / "s" / ".hidden")
    (tmp_path / "empty").mkdir()
    (tmp_path / "s" / "notes").mkdir()
    (tmp_path / "s" / "notes" / "completions.jsonl").touch()
    (tmp_path / "file").touch()

    assert labels(Catalog(tmp_path)) == {"s": ["run"]}


def test_a_run_is_a_setup_of_its_own(tmp_path: Path) -> None:
    """Directly under the root, or as the root."""
    feed(tmp_path / "root" / "alone")
    assert labels(Catalog(tmp_path / "root")) == {"alone": ["alone"]}
    assert labels(Catalog(tmp_path / "root" / "alone")) == {"alone": ["alone"]}
    assert Catalog(tmp_path / "root" / "alone").find("alone", 0)


def test_a_root_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    """They appear with it."""
    catalog = Catalog(tmp_path / "later")
    assert catalog.setups() == []
    feed(tmp_path / "later" / "s" / "run")

    assert labels(catalog) == {"s": ["run"]}


def test_runs_come_and_go(tmp_path: Path) -> None:
    """Each look finds what is there now."""
    catalog = Catalog(tmp_path)
    one = feed(tmp_path / "s" / "one", ts=1.0)
    assert labels(catalog) == {"s": ["one"]}
    (tmp_path / "s" / "two").mkdir()
    assert labels(catalog) == {"s": ["one"]}
    feed(tmp_path / "s" / "two", ts=0.0)
    assert labels(catalog) == {"s": ["two", "one"]}
    (one / "progress.jsonl").unlink()
    assert labels(catalog) == {"s": ["two"]}
    assert catalog.find("s", 1) is None


def test_a_start_is_learned_when_it_is_told(tmp_path: Path) -> None:
    """A run that says nothing yet takes its place with its first row."""
    catalog = Catalog(tmp_path)
    feed(tmp_path / "s" / "one", ts=1.0)
    feed(tmp_path / "s" / "two", rows=0)
    assert labels(catalog) == {"s": ["two", "one"]}
    feed(tmp_path / "s" / "two", ts=2.0)

    assert labels(catalog) == {"s": ["one", "two"]}


HOSTILE = ["..", ".", "", "/", "s/run", "../s", "s/../s", "\x00", "s\n", "<script>", "%2e%2e", "no"]


@pytest.mark.parametrize("label", HOSTILE)
def test_labels_are_looked_up_and_not_joined(tmp_path: Path, label: str) -> None:
    """What was not found is not there, however it is spelled."""
    feed(tmp_path / "outside" / "run")
    feed(tmp_path / "root" / "s" / "run")
    catalog = Catalog(tmp_path / "root")

    assert catalog.find(label, 0) is None
    assert catalog.find("s", 0)


@pytest.mark.parametrize("index", [-1, 1, 10**30])
def test_numbers_beyond_the_runs_name_none(tmp_path: Path, index: int) -> None:
    """Counting from the end included."""
    feed(tmp_path / "s" / "run")

    assert Catalog(tmp_path).find("s", index) is None


def test_a_label_may_hold_anything_a_name_can(tmp_path: Path) -> None:
    """It is found as it is."""
    label = "<script>alert(1)&amp;\u2028 \udcff"
    feed(tmp_path / label / "run")

    assert Catalog(tmp_path).find(label, 0)


def test_a_standing_is_kept_while_nothing_changes(tmp_path: Path) -> None:
    """And every run has one, whatever its kind."""
    with ProgressFeed(tmp_path / "s" / "one") as job:
        for i in range(200):
            job.append(iter=i, score=i)
    feed(tmp_path / "s" / "two", ts=5e9)
    catalog = Catalog(tmp_path, points=10)
    one, two = catalog.setups()[0].runs
    first = catalog.standing(one)

    assert (first.status, first.best, len(first.curve) <= 10) == ("finished", 199.0, True)
    assert catalog.standing(one) is first
    assert catalog.standing(two).iteration == 0


def test_a_run_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    """Nothing grows with what was there once."""
    run = feed(tmp_path / "s" / "run")
    catalog = Catalog(tmp_path)
    catalog.standing(catalog.setups()[0].runs[0])
    assert len(catalog._watches) == 1
    (run / "progress.jsonl").unlink()
    run.rmdir()

    assert catalog.setups() == []
    assert not catalog._watches


def test_a_quiet_root_costs_a_look_at_each_directory(tmp_path: Path) -> None:
    """No directory is listed again, and no file read."""
    for number in range(5):
        path = feed(tmp_path / "s" / f"run-{number}", ts=number)
        os.utime(path, (1e9, 1e9))
    os.utime(tmp_path / "s", (1e9, 1e9))
    os.utime(tmp_path, (1e9, 1e9))
    deeds: list[str] = []

    class Counting(Disk):
        def names(self, directory: Path) -> list[str]:
            deeds.append(f"names of {directory}")
            return super().names(directory)

        def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Any:
            deeds.append(f"read {path}")
            return super().read(path, offset=offset, size=size, head=head)

    catalog = Catalog(tmp_path, disk=Counting(), clock=ManualClock(1e9 + 3))
    for setup in catalog.setups():
        for run in setup.runs:
            catalog.standing(run)
    assert deeds
    deeds.clear()
    assert [catalog.standing(run) for setup in catalog.setups() for run in setup.runs]
    assert deeds == []


def test_what_was_listed_within_the_tick_of_its_change_is_listed_again(tmp_path: Path) -> None:
    """The time of a change is too coarse to tell two of them apart."""
    clock = ManualClock(1e9 + 1)
    catalog = Catalog(tmp_path, clock=clock)
    feed(tmp_path / "s" / "one")
    for path in (tmp_path / "s", tmp_path):
        os.utime(path, (1e9, 1e9))
    assert labels(catalog) == {"s": ["one"]}
    feed(tmp_path / "s" / "two")
    os.utime(tmp_path / "s", (1e9, 1e9))

    assert labels(catalog) == {"s": ["one", "two"]}


def test_what_may_not_be_read_is_not_there(tmp_path: Path) -> None:
    """Its neighbours are."""
    feed(tmp_path / "s" / "run")
    feed(tmp_path / "t" / "secret")
    feed(tmp_path / "secret" / "run")

    class Guarded(Disk):
        def names(self, directory: Path) -> list[str]:
            if directory.name == "secret":
                raise PermissionError(13, "Permission denied")
            return super().names(directory)

    assert labels(Catalog(tmp_path, disk=Guarded())) == {"s": ["run"]}
