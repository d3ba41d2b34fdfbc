from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
from hypothesis import given, settings

from aegir_stream import codec
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events
from aegir_stream.typing import Append
from core.runs import Life, act, deeds, drive, lived
from system.killed import event

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "read-with-jq-and-duckdb.md"


def query(run: RunDirectory) -> tuple[Any, list[Any]]:
    """Run the block of the documentation on a run; return its views and its answer."""
    block = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(block) == 1
    # These files are tiny: a second thread only waits for the first.
    views = duckdb.connect(config={"threads": 1})
    answer = views.execute(block[0].replace("'RUN/", f"'{run.root}/")).fetchall()
    return views, answer


def counted(views: Any, view: str) -> list[tuple[int, int]]:
    """Return (step, completion) of every row of a view, sorted."""
    rows: list[tuple[int, int]] = views.execute(
        f"SELECT step, completion FROM {view} ORDER BY ALL"  # noqa: S608 - a name of this module
    ).fetchall()
    return rows


def replayed(run: RunDirectory, stream: str, attempts: Any) -> list[tuple[int, int]]:
    """Return (step, completion) of every event that a replay folds, sorted."""
    return sorted((e.step, e.completion) for e in read_events(run, stream, attempts=attempts))


def record_completions(life: Life, first: int) -> None:
    """Record two completions of the present step."""
    data = b"".join(codec.encode(event("completions", life.step, first + n)) for n in range(2))
    append = Append(stream="completions", data=data, records=2, step=life.step)
    drive(life.sink.write(append))


@settings(max_examples=15)
@given(deeds)
def test_duckdb_counts_what_replay_counts(script: list[tuple[str, int]]) -> None:
    """The documented views hold the records that replay folds, surviving or of all attempts.

    Whatever checkpoints, kills in mid-line and resumes a run went through.
    """
    with lived([("step", 2), ("save", 0)]) as life:
        record_completions(life, 1)
        for number, deed in enumerate(script, start=1):
            act(life, deed)
            if deed[0] == "step":
                record_completions(life, 10 * number)
        views, _ = query(life.run)
        surviving = replayed(life.run, "sae_features", "surviving")
        assert counted(views, "records") == surviving
        everything = replayed(life.run, "sae_features", "all")
        assert counted(views, "all_records") == everything
        completions = replayed(life.run, "completions", "surviving")
        assert counted(views, "completions") == completions
        views.close()


def test_duckdb_counts_a_killed_and_resumed_run(tmp_path: Path) -> None:
    """After checkpoints, a kill in mid-line and a resume: no record of the lost step is counted."""
    life = Life(RunDirectory.at(tmp_path))
    for _ in range(2):
        for _ in range(3):
            life.record_step(40)
            record_completions(life, 10 * life.step)
        life.save()
    life.record_step(40)
    record_completions(life, 10 * life.step)
    life.kill(torn=b'{"step":7,"token_index":1,"la')
    life.resume("checkpoint-6")
    life.record_step(30)
    record_completions(life, 10 * life.step)
    views, correlation = query(life.run)

    assert len(counted(views, "records")) == len(life.surviving) == 270
    assert len(counted(views, "all_records")) == len(life.everything) == 310
    assert len(counted(views, "completions")) == 14
    assert correlation
    views.close()
    life.finish()
