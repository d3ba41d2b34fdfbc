from __future__ import annotations

import os
from pathlib import Path

import pytest

from aegir_stream.committed import Level
from aegir_stream.events import Corrupt, Reset, Rewound
from aegir_stream.layout import RunDirectory
from aegir_stream.source import RunSource
from core.runs import Life, cursors_in, drain, records_in

MISSING = "the seal is missing: the file was cut off"


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run of two steps, each sealed, and a third."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    for _ in range(2):
        life.record_step()
        life.save()
    life.record_step()
    return life


def ends_of_lines(path: Path) -> list[int]:
    """Return the offset behind each line of a file."""
    content = path.read_bytes()
    return [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]


@pytest.mark.parametrize(("lines", "torn"), [(0, 0), (1, 0), (5, 0), (2, 9), (4, 9)])
def test_a_closed_segment_without_its_seal_is_told(life: Life, lines: int, torn: int) -> None:
    """A loss of power may cut a file that a checkpoint closed while later ones survive."""
    closed = life.run.closed(1, "checkpoint-1")
    cut = [0, *ends_of_lines(closed)][lines]
    os.truncate(closed, cut + torn)
    seen = drain(RunSource(life.run, start="start"))

    records = max(0, min(3, lines - 1))
    assert records_in(seen) == life.surviving[:records] + life.surviving[3:]
    told = [each for each in seen if isinstance(each, Corrupt)]
    assert told == [Corrupt(path=str(closed), offset=cut, length=torn, reason=MISSING)]


def test_a_cut_that_a_checksum_tells_is_told_once(life: Life) -> None:
    """At the level `committed` what lacks its checksum ends at the cut."""
    closed = life.run.closed(1, "checkpoint-1")
    os.truncate(closed, ends_of_lines(closed)[2])
    seen = drain(RunSource(life.run, start="start", level="committed"))

    told = [each for each in seen if isinstance(each, Corrupt)]
    assert [(each.offset + each.length) for each in told] == [closed.stat().st_size]


@pytest.mark.parametrize("level", ["live", "committed"])
def test_a_seal_that_is_there_is_not_missed(life: Life, level: Level) -> None:
    """Nothing is told of it wherever reading begins, behind the seal included."""
    seen = drain(RunSource(life.run, start="start", level=level))
    resumed = [
        each
        for cursor in cursors_in(seen)
        for each in drain(RunSource(life.run, after=cursor, level=level))
    ]
    assert not [each for each in [*seen, *resumed] if isinstance(each, Corrupt)]

    source = RunSource(life.run, start="start", level=level)
    while deliveries := source.poll():
        again = drain(RunSource(life.run, after=source.cursor.text(), level=level))
        assert not [each for each in [*deliveries, *again] if isinstance(each, Corrupt)]


@pytest.mark.parametrize("size", [0, 3])
def test_without_control_lines_no_seal_is_missed(tmp_path: Path, size: int) -> None:
    """There was none, whether the segment holds records or not."""
    life = Life(RunDirectory.at(tmp_path), control_lines=False)
    life.record_step(size)
    life.save()
    life.record_step()
    seen = drain(RunSource(life.run, start="start"))

    assert records_in(seen) == life.surviving
    assert not [each for each in seen if isinstance(each, Corrupt)]


def test_a_segment_that_is_gone_from_the_middle_is_told(life: Life) -> None:
    """It is no rewind: nobody abandoned what it held."""
    life.run.closed(2, "checkpoint-2").unlink()
    life.run.snapshot("checkpoint-2").unlink()
    seen = drain(RunSource(life.run, start="start", attempts="all"))

    assert records_in(seen) == life.surviving[:3] + life.surviving[6:]
    told = [each.reason for each in seen if isinstance(each, Reset)]
    assert told == ["The file continues segment 2, which is gone"]
    assert not [each for each in seen if isinstance(each, Rewound)]


def test_a_segment_that_goes_while_its_reader_is_before_it_is_told(tmp_path: Path) -> None:
    """A follower at the end of one segment finds that the next it sees continues another."""
    life = Life(RunDirectory.at(tmp_path))
    life.record_step()
    follower = RunSource(life.run, start="start")
    seen = drain(follower)
    for _ in range(2):
        life.save()
        life.record_step()
    life.run.closed(2, "checkpoint-2").unlink()
    life.run.snapshot("checkpoint-2").unlink()
    seen += drain(follower)

    assert records_in(seen) == life.surviving[:3] + life.surviving[6:]
    told = [each.reason for each in seen if isinstance(each, Reset)]
    assert told == ["The file continues segment 2, which is gone"]
    assert not [each for each in seen if isinstance(each, Rewound)]


def test_a_resume_behind_a_segment_that_is_gone_is_told_as_both(life: Life) -> None:
    """What a later attempt rewound is told even where the segment that it continues is gone."""
    follower = RunSource(life.run, start="start", attempts="all")
    first = follower.poll()
    life.kill()
    life.resume("checkpoint-2")
    life.record_step()
    for number, label in ((2, "checkpoint-2"), (3, "abandoned")):
        life.run.closed(number, label).unlink()
    life.run.snapshot("checkpoint-2").unlink()
    seen = first + drain(follower)

    assert [each.to_step for each in seen if isinstance(each, Rewound)] == [2]
    told = [each.reason for each in seen if isinstance(each, Reset)]
    assert "The file continues segment 2, which is gone" in told


def test_a_flood_of_garbage_is_told_in_few_words(tmp_path: Path) -> None:
    """However many lines in a row are no records, each look tells of them once, in full."""
    run = RunDirectory.at(tmp_path)
    life = Life(run)
    life.record_step()
    live = run.live("sae_features")
    start = live.stat().st_size
    with live.open("ab") as file:
        file.write(b"x\n" * 300_000)
    life.record_step()
    deliveries = drain(RunSource(run, start="start"))
    life.finish()
    told = [delivery for delivery in deliveries if isinstance(delivery, Corrupt)]

    assert records_in(deliveries) == life.surviving
    assert sum(corrupt.lines for corrupt in told) == 300_000
    assert (told[0].offset, sum(corrupt.length for corrupt in told)) == (start, 600_000)
    assert len(told) <= 5
