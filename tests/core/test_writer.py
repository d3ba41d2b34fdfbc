from __future__ import annotations

import errno
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.disk import AppendHandle
from aegir_stream.errors import MalformedEventError, WriteLostError
from aegir_stream.events import Batch, Close, Control, Gap, Seal
from aegir_stream.system import System
from aegir_stream.testing import make_append, make_record
from aegir_stream.writer import SegmentWriter


class CrampedHandle(AppendHandle):
    """A file that takes `room` bytes and then reports a full disk."""

    room: int = 1 << 40

    def write(self, data: memoryview | bytes) -> int:
        """Append what fits; fail when nothing does."""
        taken = min(len(data), self.room)
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return super().write(data[:taken])


def read(path: Path) -> tuple[list[bytes], list[Control]]:
    """Return the data lines and the control events of a file; every line must be whole."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\n")
    lines = content.splitlines()
    data = [line for line in lines if not codec.is_control(line)]
    controls = [codec.decode_control(line) for line in lines if codec.is_control(line)]
    return data, [control for control in controls if control is not None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file to write."""
    return tmp_path / "segment.jsonl"


def test_every_append_is_followed_by_its_trailer(path: Path) -> None:
    """The trailer counts and checks the bytes of its append, and names step and pass."""
    writer = SegmentWriter(AppendHandle(System(), path), rank=2, attempt=3)
    append = make_append(make_record(token=0), make_record(token=1))

    writer.append(append.data, records=2, step=5, pass_="loss")
    writer.close(None)

    data, controls = read(path)
    assert b"\n".join(data) + b"\n" == append.data
    expected = Batch(
        records=2,
        bytes=len(append.data),
        crc32=zlib.crc32(append.data),
        step=5,
        rank=2,
        attempt=3,
        pass_="loss",
    )
    assert controls == [expected]


@pytest.mark.parametrize("data", [b'{"step":1}', b'{"step":1}\n{"step":', b'{"step":1}\n' * 2, b""])
def test_what_is_not_whole_lines_is_refused(path: Path, data: bytes) -> None:
    """It is not written, so the lines behind it are whole."""
    writer = SegmentWriter(AppendHandle(System(), path))
    with pytest.raises(MalformedEventError, match="Expected 1 lines, each ended by a newline"):
        writer.append(data, records=1)
    append = make_append()
    writer.append(append.data, records=1)
    writer.close(None)

    assert b"\n".join(read(path)[0]) + b"\n" == append.data


def test_the_seal_covers_the_whole_segment(path: Path) -> None:
    """The seal is the last line; its counts and checksum are those of all data lines."""
    writer = SegmentWriter(AppendHandle(System(), path))
    appends = [make_append(make_record(step=step)) for step in (1, 2, 3)]
    for append in appends:
        writer.append(append.data, records=1)

    seal = writer.seal(checkpoint="checkpoint-3", step=3, segment=1)
    writer.close(None)

    whole = b"".join(append.data for append in appends)
    assert (seal.records, seal.bytes, seal.crc32) == (3, len(whole), zlib.crc32(whole))
    assert read(path)[1][-1] == seal


def test_a_torn_seal_is_finished_and_not_written_twice(path: Path) -> None:
    """Sealing again after a full disk completes the line that was begun."""
    handle = CrampedHandle(System(), path)
    writer = SegmentWriter(handle)
    writer.append(make_append().data, records=1)
    handle.room = 10
    with pytest.raises(OSError, match="No space"):
        writer.seal(checkpoint="checkpoint-1", step=1, segment=1)
    handle.room = 1 << 20
    seal = writer.seal(checkpoint="checkpoint-1", step=1, segment=1)
    writer.close(None)

    assert [event for event in read(path)[1] if isinstance(event, Seal)] == [seal]


def test_closing_twice_marks_once(path: Path) -> None:
    """The closing mark says how the segment ended."""
    writer = SegmentWriter(AppendHandle(System(), path))
    writer.append(make_append().data, records=1)
    writer.close("finished")

    assert read(path)[1][-1] == Close(status="finished", records=1)


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.lists(st.integers(0, 700), min_size=1, max_size=8),
)
def test_a_full_disk_costs_records_that_are_counted(sizes: list[int], rooms: list[int]) -> None:
    """Whenever space runs out and returns, lines stay whole, and lost plus kept is everything.

    Trailers keep matching the bytes before them.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "segment.jsonl"
        handle = CrampedHandle(System(), path)
        writer = SegmentWriter(handle)
        lost = serial = 0
        for number, size in enumerate(sizes):
            handle.room = rooms[number % len(rooms)]
            records = [make_record(step=number, token=serial + i) for i in range(size)]
            serial += size
            try:
                writer.append(make_append(*records).data, records=size, step=number)
            except WriteLostError as error:
                lost += error.records_lost
        handle.room = 1 << 30
        writer.append(make_append(make_record(token=serial)).data, records=1)
        writer.close("finished")

        data, controls = read(path)
        assert len(data) + lost == serial + 1
        assert sum(c.records for c in controls if isinstance(c, Gap)) == lost
        assert writer.records == len(data)
        _check_trailers(path)


def _check_trailers(path: Path) -> None:
    pending = b""
    for line in path.read_bytes().splitlines(keepends=True):
        if not codec.is_control(line):
            pending += line
            continue
        event = codec.decode_control(line[:-1])
        if isinstance(event, Batch):
            assert (event.bytes, event.crc32) == (len(pending), zlib.crc32(pending))
            assert event.records == pending.count(b"\n")
            pending = b""
        if isinstance(event, Seal):
            break
    assert pending == b""


def test_a_gap_names_the_steps_and_the_reason(path: Path) -> None:
    """What was lost is told once, with its steps and the system's own words."""
    handle = CrampedHandle(System(), path)
    writer = SegmentWriter(handle)
    handle.room = 0
    for step in (4, 5, 6):
        with pytest.raises(WriteLostError, match="No space left on device"):
            writer.append(make_append().data, records=1, step=step)
    handle.room = 1 << 20
    writer.append(make_append().data, records=1, step=7)
    writer.close(None)

    gaps = [c for c in read(path)[1] if isinstance(c, Gap)]
    expected = Gap(records=3, reason="No space left on device", first_step=4, last_step=6)
    assert gaps == [expected]


def test_the_part_that_was_kept_has_a_trailer_of_its_own(path: Path) -> None:
    """Records that got through before the disk was full are not counted to the next step."""
    handle = CrampedHandle(System(), path)
    writer = SegmentWriter(handle)
    first = make_append(make_record(token=0), make_record(token=1))
    handle.room = len(first.data) // 2 + 10
    with pytest.raises(WriteLostError):
        writer.append(first.data + make_append().data, records=3, step=1)
    handle.room = 1 << 20
    writer.append(make_append().data, records=1, step=2)
    writer.close(None)

    batches = [c for c in read(path)[1] if isinstance(c, Batch)]
    assert [(batch.step, batch.records) for batch in batches] == [(1, 2), (2, 1)]


def test_without_control_lines_only_records_are_written(path: Path) -> None:
    """Nothing but data lines is in the file, also after a loss."""
    handle = CrampedHandle(System(), path)
    writer = SegmentWriter(handle, control_lines=False)
    handle.room = 10
    with pytest.raises(WriteLostError):
        writer.append(make_append(make_record(), make_record()).data, records=2)
    handle.room = 1 << 20
    writer.append(make_append().data, records=1)
    writer.seal(checkpoint="checkpoint-1", step=1, segment=1)
    writer.close("finished")

    data, controls = read(path)
    assert (len(data), controls) == (2, [])
