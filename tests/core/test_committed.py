from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.cursor import Position
from aegir_stream.events import Batch, Corrupt, GRPOMetrics, Reset, SourceSwitch, Stalled
from aegir_stream.layout import RunDirectory
from aegir_stream.replay import read_events, replay
from aegir_stream.source import Level, RunSource
from aegir_stream.testing import make_append, make_record
from aegir_stream.typing import Append
from aegir_stream.views import HeatmapView
from core.damaging import Line, damaged, feed, lines_of, lives, segment_files
from core.runs import Life, act, cursors_in, deeds, drain, drive, lived, records_in

LEVELS: tuple[Level, Level] = ("live", "committed")


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """A run of two appends."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    life.record_step()
    life.record_step()
    return life


def committed(run: RunDirectory) -> list[Delivery]:
    """Return all that a reader at `committed` gets, of all attempts."""
    return drain(RunSource(run, start="start", attempts="all", level="committed"))


def corrupt_in(deliveries: Iterable[Delivery]) -> list[Corrupt]:
    """Return the damage that was told."""
    return [d for d in deliveries if isinstance(d, Corrupt)]


def is_subsequence(few: Iterable[object], many: Iterable[object]) -> bool:
    """Tell whether all of `few` stand in `many`, in this order."""
    rest = iter(many)
    return all(one in rest for one in few)


def is_told(line: Line, told: Iterable[Corrupt]) -> bool:
    """Tell whether a line lies in damage that was told."""
    return any(
        line.path.samefile(damage.path)
        and damage.offset <= line.start
        and line.end <= damage.offset + damage.length
        for damage in told
    )


def trailers(path: Path) -> list[tuple[int, bytes]]:
    """Return where the trailers of a file stand, and their lines."""
    found, at = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n") and isinstance(codec.decode_control(line), Batch):
            found.append((at, line))
        at += len(line)
    return found


# -- laws --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(deeds)
def test_what_is_whole_is_read_alike_at_both_levels(script: list[tuple[str, int]]) -> None:
    """Where every append has its trailer and nothing is damaged, both levels give the same."""
    with lived(script) as life:
        for level in LEVELS:
            surviving = RunSource(life.run, start="start", level=level)
            everything = RunSource(life.run, start="start", attempts="all", level=level)
            assert records_in(drain(surviving)) == life.surviving
            assert records_in(drain(everything)) == life.everything


@settings(max_examples=40)
@given(deeds, st.data())
def test_following_sees_every_verified_record_once(
    script: list[tuple[str, int]], data: st.DataObject
) -> None:
    """A follower at `committed` sees every record of every attempt once, over seals and resumes."""
    with lived() as life:
        source = RunSource(life.run, start="start", level="committed")
        seen = drain(source)
        for deed in script:
            act(life, deed)
            if data.draw(st.booleans()):
                seen += drain(source)
        seen += drain(source)

        assert records_in(seen) == life.everything
        assert not [d for d in seen if isinstance(d, Reset)]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_a_log_that_grows_in_any_pieces_gives_whole_appends(pieces: list[int]) -> None:
    """However the bytes arrive, what has been delivered ends where an append ends."""
    with lived([("step", 3)] * 6) as life:
        live = life.run.live("sae_features")
        whole = live.read_bytes()
        live.write_bytes(b"")
        source, written = RunSource(life.run, start="start", level="committed"), 0
        seen: list[Delivery] = []
        for piece in [*pieces, len(whole)]:
            with live.open("ab") as file:
                file.write(whole[written : written + piece])
            written += piece
            seen += drain(source)
            assert len(records_in(seen)) == 3 * len(trailers(live))

        assert records_in(seen) == life.surviving
        assert not corrupt_in(seen)


@settings(max_examples=60)
@given(deeds, st.sampled_from(LEVELS), st.sampled_from(LEVELS), st.data())
def test_a_cursor_of_either_level_resumes_at_either(
    script: list[tuple[str, int]], first: Level, then: Level, data: st.DataObject
) -> None:
    """Exactly the records behind a cursor follow it, wherever in an append it stands."""
    half = len(script) // 2
    with lived(script[:half]) as life:
        before = drain(RunSource(life.run, start="start", attempts="all", level=first))
        cursors = cursors_in(before)
        for deed in script[half:]:
            if deed[0] in ("step", "save"):
                act(life, deed)
        assume(cursors)
        at = data.draw(st.integers(0, len(cursors) - 1))
        last = records_in(before)[at]

        resumed = drain(RunSource(life.run, after=cursors[at], level=then))

        assert isinstance(resumed[0], SourceSwitch)
        assert resumed[0].verdict == "resumed"
        chain = life.surviving if last in life.surviving else life.everything
        assert records_in(resumed) == chain[chain.index(last) + 1 :]


@settings(max_examples=80)
@given(deeds, st.integers(0, 20), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_no_flipped_bit_gets_past_the_checksum(
    script: list[tuple[str, int]], file: int, where: float, bit: int
) -> None:
    """With a bit flipped anywhere, what is delivered was written, and what is missing is told."""
    with lived([*script, ("step", 2), ("step", 1)]) as life:
        files = segment_files(life.run)
        path = files[file % len(files)]
        lines = [line for each in files for line in lines_of(each) if line.data in _written(life)]
        content = path.read_bytes()
        path.write_bytes(damaged(content, ("flip", where, bit)))

        seen = committed(life.run)

        assert is_subsequence(records_in(seen), life.everything)
        # The first line says which segment it is: who damages that may hide the segment.
        assume(int(where * len(content)) > content.index(b"\n"))
        found = {record for d in seen if isinstance(d, Chunk) for record in d.records}
        told, live = corrupt_in(seen), life.run.live("sae_features")
        assert [
            line
            for line in lines
            if line.data not in found
            and not is_told(line, told)
            # Behind the last trailer of a live tail a writer may still add one.
            and not (line.path == live and line.end > _behind_last_trailer(live))
        ] == []


def _written(life: Life) -> set[bytes]:
    return {codec.encode(record).rstrip(b"\n") for record in life.everything}


def _behind_last_trailer(path: Path) -> int:
    return max((at + len(line) for at, line in trailers(path)), default=0)


# -- feeds, to which several attempts append ---------------------------------------------------


@settings(max_examples=60)
@given(lives)
def test_feeds_of_several_attempts_are_read_whole(
    attempts: list[tuple[list[int], bytes]],
) -> None:
    """Torn lines between the attempts of a feed cost no record, and are told."""
    with lived() as life:
        written = feed(life.run, [*attempts, ([1], b"")])
        source = RunSource(
            life.run, "grpo_metrics", start="start", attempts="all", level="committed"
        )
        seen = drain(source)

        rows = [
            codec.decode(record, GRPOMetrics)
            for d in seen
            if isinstance(d, Chunk)
            for record in d.records
        ]
        assert rows == written
        assert not [d for d in seen if isinstance(d, Reset)]
        assert len(corrupt_in(seen)) <= len(attempts)


# -- what one damaged place costs --------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> tuple[Life, Path, list[int]]:
    """A run of three appends of two records, its live tail, and where its appends begin."""
    life = Life(RunDirectory.at(tmp_path / "run"))
    live = life.run.live("sae_features")
    starts = []
    for _ in range(3):
        starts.append(live.stat().st_size)
        life.record_step(2)
    return life, live, [*starts, live.stat().st_size]


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def flip_digit(path: Path, behind: int) -> None:
    """Make the token index of an append's second record another number."""
    key = b'"token_index":'
    flip(path, path.read_bytes().index(key + b"1", behind) + len(key))


def ranges(deliveries: Iterable[Delivery]) -> list[tuple[int, int]]:
    """Return the damaged ranges that were told; where something is missing there is none."""
    return [(c.offset, c.offset + c.length) for c in corrupt_in(deliveries) if c.length]


def test_a_flipped_digit_costs_its_append(three: tuple[Life, Path, list[int]]) -> None:
    """A record that still parses but is not what was written is left out with its append."""
    life, live, starts = three
    flip_digit(live, starts[1])

    seen = committed(life.run)

    assert records_in(seen) == life.everything[:2] + life.everything[4:]
    assert ranges(seen) == [(starts[1], starts[2])]
    assert corrupt_in(seen)[0].reason == "these bytes do not agree with their checksum"
    assert len(records_in(drain(RunSource(life.run, start="start")))) == 6


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("place", ["prefix", "name", "count", "newline before", "newline behind"])
def test_a_damaged_trailer_costs_its_own_append_only(
    three: tuple[Life, Path, list[int]], place: str, bit: int
) -> None:
    """The append behind a damaged trailer is found by the length that its own trailer states."""
    life, live, starts = three
    trailer = trailers(live)[1][0]
    at = {
        "prefix": trailer + 2,
        "name": trailer + 9,
        "count": trailer + len(b'{"$log":"batch","records":'),
        "newline before": trailer - 1,
        "newline behind": starts[2] - 1,
    }[place]
    flip(live, at, bit)

    seen = committed(life.run)

    assert records_in(seen) == life.everything[:2] + life.everything[4:]
    assert ranges(seen) == [(starts[1], starts[2])]


def test_a_damaged_first_line_does_not_turn_checking_off(
    three: tuple[Life, Path, list[int]],
) -> None:
    """Without its `Open` line a file is still one whose appends have checksums."""
    life, live, starts = three
    flip(live, 4)
    flip_digit(live, starts[1])

    seen = committed(life.run)

    assert records_in(seen) == life.everything[:2] + life.everything[4:]
    assert ranges(seen) == [(0, starts[0]), (starts[1], starts[2])]


def test_foreign_lines_between_appends_are_left_out(life: Life) -> None:
    """What no checksum covers is not delivered, even where it parses."""
    live = life.run.live("sae_features")
    begin = live.stat().st_size
    with live.open("ab") as file:
        file.write(make_append(make_record(step=77)).data)
    end = live.stat().st_size
    life.record_step()

    seen = committed(life.run)

    assert records_in(seen) == life.everything
    assert ranges(seen) == [(begin, end)]


def test_kinds_of_control_lines_that_a_later_version_adds_are_no_damage(life: Life) -> None:
    """An unknown control line between appends costs nothing, at either level."""
    with life.run.live("sae_features").open("ab") as file:
        file.write(b'{"$log":"weather","sun":true}\n')
    life.record_step()

    for level in LEVELS:
        seen = drain(RunSource(life.run, start="start", level=level))
        assert records_in(seen) == life.everything
        assert not corrupt_in(seen)


def test_a_cursor_inside_a_damaged_append_goes_on_behind_it(
    three: tuple[Life, Path, list[int]],
) -> None:
    """A reader from `live` that stands inside a damaged append is told its rest, no more."""
    life, live, starts = three
    cursor = cursors_in(drain(RunSource(life.run, start="start")))[2]
    flip_digit(live, starts[1])

    seen = drain(RunSource(life.run, after=cursor, level="committed"))

    assert records_in(seen) == life.everything[4:]
    inside = starts[1] + len(make_append(life.everything[2]).data)
    assert ranges(seen) == [(inside, starts[2])]


def test_a_cursor_behind_a_damaged_control_line_is_verified_from_an_earlier_one(
    three: tuple[Life, Path, list[int]],
) -> None:
    """A trailer that has swallowed a record is none; the append behind it agrees all the same."""
    life, live, starts = three
    begin = trailers(live)[1][0]
    flip(live, starts[2] - 1, 2)
    live_seen = drain(RunSource(life.run, start="start"))
    chunks = [d for d in live_seen if isinstance(d, Chunk)]
    assert records_in(chunks) == life.everything[:4] + life.everything[5:]
    swallowed = starts[2] + len(make_append(life.everything[4]).data)
    assert ranges(live_seen) == [(begin, swallowed)]

    seen = drain(RunSource(life.run, after=chunks[-1].before.text(), level="committed"))

    assert records_in(seen) == life.everything[5:]
    assert not corrupt_in(seen)


def test_until_cuts_a_damaged_range_in_two(three: tuple[Life, Path, list[int]]) -> None:
    """Nothing beyond `until` is told; the rest of the range is told afterwards."""
    life, live, starts = three
    inside = starts[1] + len(make_append(life.everything[2]).data)
    source = RunSource(life.run, start="start")
    drain(source)
    until = source.cursor.moved("rank0", Position(1, inside))
    flip_digit(live, starts[1])
    reader = RunSource(life.run, start="start", level="committed")
    seen: list[Delivery] = []
    while found := reader.poll(until=until):
        seen += found
    first = ranges(seen)
    seen += drain(reader)

    assert first == [(starts[1], inside)]
    assert ranges(seen) == [*first, (inside, starts[2])]
    assert records_in(seen) == life.everything[:2] + life.everything[4:]


# -- what a writer may still complete, and what it left ----------------------------------------


def test_an_append_waits_for_its_trailer(life: Life) -> None:
    """Whole lines at the end of a file that grows are neither delivered nor damage."""
    live = life.run.live("sae_features")
    source = RunSource(life.run, start="start", level="committed")
    drain(source)
    life.record_step()
    whole, cut = live.read_bytes(), trailers(live)[-1][0] + 5
    live.write_bytes(whole[:cut])
    assert drain(source) == []

    with live.open("ab") as file:
        file.write(whole[cut:])
    seen = drain(source)

    assert records_in(seen) == life.everything[-3:]
    assert not corrupt_in(seen)


def test_lines_that_a_killed_writer_left_without_trailer_are_told(life: Life) -> None:
    """Once the next writer has gone on, they can get no trailer any more."""
    live = life.run.live("sae_features")
    life.record_step()
    life.kill()
    (begin, trailer), (cut, _) = trailers(live)[-2:]
    os.truncate(live, cut)
    source = RunSource(life.run, start="start", attempts="all", level="committed")
    before = drain(source)
    assert records_in(before) == life.everything[:-3]
    assert not corrupt_in(before)

    life.resume(None)
    seen = drain(source)

    assert ranges(seen) == [(begin + len(trailer), cut)]
    assert corrupt_in(seen)[0].reason == "no checksum stands behind these bytes"


def test_what_is_left_of_a_closed_segment_is_told(life: Life) -> None:
    """A closed file that was cut off ends with a range, up to its last byte."""
    life.save()
    closed = life.run.history()[0].path
    (begin, trailer), (cut, _) = trailers(closed)
    os.truncate(closed, cut + 9)

    seen = committed(life.run)

    assert records_in(seen) == life.everything[:3]
    assert ranges(seen) == [(begin + len(trailer), cut + 9)]


def test_a_file_that_became_shorter_is_scanned_again(life: Life) -> None:
    """What was scanned but not delivered may vanish; nothing wrong comes of it."""
    live = life.run.live("sae_features")
    source = RunSource(life.run, start="start", level="committed")
    drain(source)
    size = live.stat().st_size
    with live.open("ab") as file:
        file.write(make_append(*(make_record(step=9, token=token) for token in range(4))).data)
    assert drain(source) == []
    os.truncate(live, size)
    assert not records_in(drain(source))
    life.record_step()

    seen = drain(source)

    assert records_in(seen) == life.everything[-3:]
    assert not corrupt_in(seen)


def test_a_truncated_file_is_told_and_nothing_is_doubled(life: Life) -> None:
    """Reading goes on at the end of what was left, once the file is as long again."""
    live = life.run.live("sae_features")
    source = RunSource(life.run, start="start", level="committed")
    seen = drain(source)
    first, trailer = trailers(live)[0]
    os.truncate(live, first + len(trailer))

    assert [type(d) for d in drain(source)] == [Stalled]
    for _ in range(3):
        life.record_step()
    seen += drain(source)

    assert [type(d) for d in seen if isinstance(d, Reset)] == [Reset]
    assert records_in(seen) == life.everything


def test_a_segment_whose_seal_is_damaged_is_left_all_the_same(life: Life) -> None:
    """Once its file stands under `history/` only, it grows no more, whatever its last line says."""
    source = RunSource(life.run, start="start", level="committed")
    seen = drain(source)
    life.save()
    closed = life.run.history()[0].path
    flip(closed, closed.read_bytes().rindex(b'{"$log":"seal"') + 1)
    life.record_step()

    seen += drain(source)

    assert records_in(seen) == life.everything
    assert len(ranges(seen)) == 1


# -- files without trailers --------------------------------------------------------------------


def test_files_without_control_lines_are_read_as_at_live(tmp_path: Path) -> None:
    """Where nothing was summed up there is nothing to check."""
    life = Life(RunDirectory.at(tmp_path), control_lines=False)
    life.record_step()
    life.save()
    life.record_step()

    assert records_in(committed(life.run)) == life.everything


def test_the_progress_feed_is_read_as_at_live(tmp_path: Path) -> None:
    """Other programs append to `progress`, so it has no trailers."""
    run = RunDirectory.at(tmp_path)
    run.live("progress").write_bytes(b'{"iter":1}\n{"iter":2}\n')

    assert [row.iter for row in read_events(run, "progress", level="committed")] == [1, 2]


# -- replays, and memory -----------------------------------------------------------------------


def test_replays_leave_out_what_is_damaged(three: tuple[Life, Path, list[int]]) -> None:
    """`replay` and `read_events` take the level as well; a saved state goes on at its own."""
    life, live, starts = three
    flip_digit(live, starts[1])
    view = HeatmapView()

    assert replay(life.run, view).events == 6
    verified = replay(life.run, view, level="committed")
    assert (verified.events, verified.skipped) == (4, 1)
    found = list(read_events(life.run, "sae_features", level="committed"))
    assert found == life.everything[:2] + life.everything[4:]
    assert replay(life.run, view, after=verified).events == 6
    assert replay(life.run, view, after=verified, level="committed") == verified


def test_a_long_append_costs_no_memory(tmp_path: Path) -> None:
    """An append of 28 MiB is verified and read within a small part of its size."""
    life = Life(RunDirectory.at(tmp_path))
    row = make_append(make_record()).data
    drive(life.sink.write(Append(stream="sae_features", data=row * 200_000, records=200_000)))
    source = RunSource(life.run, start="start", level="committed")
    tracemalloc.start()
    try:
        count = 0
        while deliveries := source.poll():
            count += sum(len(d.records) for d in deliveries if isinstance(d, Chunk))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert count == 200_000
    assert life.run.live("sae_features").stat().st_size > 25 << 20
    assert peak < 6 << 20
