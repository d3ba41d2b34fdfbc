from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegir_stream.cursor import guard_of
from aegir_stream.disk import Disk, Reading
from aegir_stream.tail import LINE_LIMIT_BYTES, Look, Tail

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one line, its identity."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"first\n")
    return path


def append(path: Path, data: bytes) -> None:
    """Append to a file."""
    with path.open("ab") as file:
        file.write(data)


def read_all(tail: Tail, *, until: int | None = None) -> list[Look]:
    """Look until nothing is left for now."""
    looks = [tail.look(until=until)]
    while looks[-1].outcome == "lines":
        looks.append(tail.look(until=until))
    return looks


def lines(looks: list[Look]) -> list[bytes]:
    """Return the lines of several looks."""
    return [line for look in looks for line in look.lines]


class CountingDisk(Disk):
    """A disk that counts the bytes it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def read(self, path: Path, *, offset: int, size: int, head: int = 0) -> Reading:
        """Look at a file."""
        reading = super().read(path, offset=offset, size=size, head=head)
        self.asked += len(reading.data)
        return reading


def test_a_gigantic_line_is_skipped_in_constant_memory(path: Path) -> None:
    """A line of 64 MiB that arrives in pieces costs less than one MiB, and is told once."""
    tail = Tail(Disk(), path)
    read_all(tail)
    piece = b"x" * (4 * MIB)
    looks: list[Look] = []
    tracemalloc.start()
    try:
        for _ in range(16):
            append(path, piece)
            looks += read_all(tail)
        append(path, b"\nlast\n")
        looks += read_all(tail)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    skipped = [each for look in looks for each in look.skipped]
    assert [(each.offset, each.length) for each in skipped] == [(6, 64 * MIB + 1)]
    assert skipped[0].guard == guard_of(piece)
    assert lines(looks) == [b"last"]
    assert peak < MIB


def test_an_unfinished_long_line_is_read_once(path: Path) -> None:
    """However often a long line is looked at before it is finished, it is not searched again."""
    disk = CountingDisk()
    tail = Tail(disk, path)
    for _ in range(8):
        append(path, b"x" * MIB)
        read_all(tail)
    unfinished = [tail.look() for _ in range(50)]

    assert {look.outcome for look in unfinished} == {"end"}
    assert unfinished[-1].unfinished == 8 * MIB
    assert disk.asked < 8 * MIB + (1 << 19)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([1, 255 << 10, 256 << 10, 257 << 10, 700 << 10]), max_size=5),
    st.data(),
)
def test_long_lines_within_the_limit_are_read_whole(sizes: list[int], data: st.DataObject) -> None:
    """Lines longer than one read come whole and in order, and nothing beyond `until` comes."""
    import tempfile  # noqa: PLC0415 - hypothesis does not go with tmp_path

    with tempfile.TemporaryDirectory(prefix="aegir-") as directory:
        path = Path(directory) / "log.jsonl"
        whole = [bytes([97 + n]) * size for n, size in enumerate(sizes)]
        path.write_bytes(b"first\n" + b"".join(line + b"\n" for line in whole))
        behind = data.draw(st.integers(0, len(whole)))
        until = 6 + sum(len(line) + 1 for line in whole[:behind])
        tail = Tail(Disk(), path)

        before = lines(read_all(tail, until=until))
        assert tail.offset == until
        assert before == [b"first", *whole[:behind]]
        assert lines(read_all(tail)) == whole[behind:]


def test_a_line_of_exactly_the_limit_is_skipped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit itself is too long; one byte less is a line."""
    assert LINE_LIMIT_BYTES == 16 * MIB
    monkeypatch.setattr("aegir_stream.tail.LINE_LIMIT_BYTES", 300 << 10)
    append(path, b"a" * ((300 << 10) - 1) + b"\n" + b"b" * (300 << 10) + b"\n")

    looks = read_all(Tail(Disk(), path))

    assert [len(line) for line in lines(looks)] == [5, (300 << 10) - 1]
    assert [each.length for look in looks for each in look.skipped] == [(300 << 10) + 1]


def test_another_file_in_the_middle_of_a_long_line_is_noticed(path: Path) -> None:
    """A long line is never put together from two files."""
    append(path, b"x" * MIB)
    tail = Tail(Disk(), path)
    read_all(tail)
    path.write_bytes(b"other\n" + b"y" * (2 * MIB) + b"\n")

    assert tail.look().outcome == "replaced"
    assert tail.offset == 6
