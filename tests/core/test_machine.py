from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aegir_stream.disk import Disk
from aegir_stream.system import Status, System
from aegir_stream.testing import NO_LINKS, NO_LOCKS, Fault, Killed, SimulatedMachine

LOG = Path("/log")
APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT


# -- the simulation against the system ------------------------------------------------------------

names = st.sampled_from(["a", "b", "d", "d/a", "d/e", "d/e/f", "a/x"])
flags = st.builds(
    lambda access, *more: access | sum(more),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]),
    st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_EXCL]),
    st.sampled_from([0, os.O_APPEND]),
)
descriptors = st.integers(0, 4)
deeds = st.one_of(
    st.tuples(st.just("open"), names, flags),
    st.tuples(st.just("write"), descriptors, st.binary(max_size=6)),
    st.tuples(st.just("pread"), descriptors, st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.sampled_from(["fstat", "close", "sync", "sync_data"]), descriptors),
    st.tuples(st.just("lock"), descriptors, st.booleans()),
    st.tuples(st.sampled_from(["link", "rename"]), names, names),
    st.tuples(st.sampled_from(["unlink", "mkdir", "names", "exists", "is_directory"]), names),
    st.tuples(st.just("stat"), names),
)


class Player:
    """Makes calls on a system and tells what came of them, in words that any system would use."""

    def __init__(self, system: System, root: Path) -> None:
        self.system = system
        self.root = root
        self.open: list[int | None] = []
        self.directories: set[int] = set()
        self.inodes: dict[Any, int] = {}

    def play(self, deed: tuple[Any, ...]) -> object:
        """Make one call; return its result, or the error it ended with."""
        kind, *arguments = deed
        try:
            return self._told(kind, arguments, self._made(kind, arguments))
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def end(self) -> None:
        """Close what is open."""
        for fd in self.open:
            if fd is not None:
                self.system.close(fd)

    def _made(self, kind: str, arguments: list[Any]) -> object:
        call: Callable[..., object] = getattr(self.system, kind)
        if kind == "lock":
            return call(self._fd(arguments[0]), shared=arguments[1])
        if isinstance(arguments[0], str):
            return call(*(self.root / a if isinstance(a, str) else a for a in arguments))
        return call(self._fd(arguments[0]), *arguments[1:])

    def _fd(self, index: int) -> int:
        fd = self.open[index] if index < len(self.open) else None
        return 10**6 if fd is None else fd

    def _is_directory(self, asked: int | str) -> bool:
        if isinstance(asked, str):
            return self.system.is_directory(self.root / asked)
        return asked in self.directories

    def _told(self, kind: str, arguments: list[Any], result: object) -> object:
        if kind == "open":
            assert isinstance(result, int)
            if self.system.is_directory(self.root / arguments[0]):
                self.directories.add(len(self.open))
            self.open.append(result)
            return "opened"
        if kind == "close":
            self.open[arguments[0]] = None
        if isinstance(result, Status):
            inode = self.inodes.setdefault(result.inode, len(self.inodes))
            # A directory's size is the file system's own affair.
            return inode, None if self._is_directory(arguments[0]) else result.size
        return sorted(result) if isinstance(result, list) else result


TWICE = [("open", "a", APPEND), ("open", "a", APPEND)]


@settings(max_examples=300)
@given(st.lists(deeds, max_size=30))
# Converting a lock in vain loses it.
@example([*TWICE, ("lock", 0, True), ("lock", 1, True), ("lock", 0, False), ("lock", 1, False)])
# Renaming one name of a file to another leaves both.
@example([*TWICE, ("link", "a", "b"), ("rename", "a", "b"), ("names", "d"), ("exists", "a")])
def test_the_simulation_agrees_with_the_system(script: list[tuple[Any, ...]]) -> None:
    """The same calls have the same results and errors on a simulated and on the real disk."""
    machine = SimulatedMachine()
    simulated = Player(machine.process(), Path("/"))
    with tempfile.TemporaryDirectory(prefix="aegir-") as directory:
        real = Player(System(), Path(directory))
        for deed in script:
            assert simulated.play(deed) == real.play(deed), deed
        real.end()


# -- processes ------------------------------------------------------------------------------------


@pytest.fixture
def machine() -> SimulatedMachine:
    """A machine with an empty disk."""
    return SimulatedMachine()


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """Expect a call to fail with an error."""
    with pytest.raises(OSError, match=r".*") as caught:
        yield
    assert caught.value.errno == number


def test_a_killed_process_makes_no_more_calls(machine: SimulatedMachine) -> None:
    """Its locks and descriptors are gone; what it wrote is there."""
    first, second = machine.process(), machine.process()
    fd = first.open(LOG, APPEND)
    first.lock(fd)
    first.write(fd, b"ab")
    other = second.open(LOG, APPEND)
    with refused(errno.EAGAIN):
        second.lock(other)
    first.kill()

    second.lock(other)
    assert machine.descriptors == [LOG]
    assert second.pread(other, 9, 0) == b"ab"
    with pytest.raises(Killed):
        first.exists(LOG)


def test_a_killed_process_does_not_clean_up(machine: SimulatedMachine) -> None:
    """What stops at a call, stops: nothing that handles errors gets anywhere."""
    process = machine.process()
    fd = process.open(LOG, APPEND)
    machine.fail(Fault(kinds=frozenset({"write"}), meanwhile=process.kill))

    def work() -> None:
        with contextlib.suppress(Exception), contextlib.ExitStack() as cleaning:
            cleaning.callback(process.unlink, LOG)
            process.write(fd, b"a")

    with pytest.raises(Killed):
        work()
    assert machine.files() == {LOG: b""}


def test_a_forked_child_keeps_the_lock(machine: SimulatedMachine) -> None:
    """Parent and child share the open file; its lock ends with the last of its descriptors."""
    parent, other = machine.process(), machine.process()
    fd = parent.open(LOG, APPEND)
    parent.lock(fd)
    child = parent.fork()
    parent.kill()
    mine = other.open(LOG, APPEND)
    with refused(errno.EAGAIN):
        other.lock(mine)
    child.write(fd, b"c")
    child.close(fd)

    other.lock(mine)
    assert other.pread(mine, 9, 0) == b"c"


# -- durability -----------------------------------------------------------------------------------


def written(machine: SimulatedMachine) -> None:
    """Write a file whose name and first four bytes are on the medium, and whose last four not."""
    process = machine.process()
    fd = process.open(LOG, APPEND)
    process.write(fd, b"safe")
    process.sync_data(fd)
    process.sync(process.open(Path("/"), os.O_RDONLY))
    process.write(fd, b"lost")


@pytest.mark.parametrize(
    ("choose", "keeps_sizes", "left"),
    [
        (min, False, b"safe"),
        (max, False, b"safelost"),
        (min, True, b"safe\0\0\0\0"),
        (lambda least, most: (least + most) // 2, True, b"safelo\0\0"),
    ],
)
def test_a_power_cut_leaves_what_was_synced(
    machine: SimulatedMachine, choose: Callable[[int, int], int], *, keeps_sizes: bool, left: bytes
) -> None:
    """Of a file a prefix is left, not shorter than what was synced, perhaps at its full size."""
    written(machine)
    machine.power_cut(choose, keeps_sizes=keeps_sizes)

    assert machine.files() == {LOG: left}
    assert machine.descriptors == []


def test_a_power_cut_leaves_a_prefix_of_the_name_changes(machine: SimulatedMachine) -> None:
    """Syncing a directory keeps its changes and what came before them, anywhere."""
    disk = Disk(machine.process())
    for name in ("one", "two"):
        disk.make_directory(Path("/", name))
        disk.append(Path("/", name, "a"))
    disk.sync_directory(Path("/one"))
    machine.power_cut(lambda least, most: least + 1 if most < 10 else least)

    assert [str(path) for path, _ in machine.names.walk()] == ["/one", "/one/a", "/two"]


def test_a_rename_happens_as_a_whole_or_not_at_all(machine: SimulatedMachine) -> None:
    """No power cut leaves both names, or neither."""
    disk = Disk(machine.process())
    disk.write(LOG, b"old")
    disk.sync_directory(Path("/"))
    disk.write(LOG, b"new")
    machine.power_cut(lambda _, most: most - 1)

    assert machine.files()[LOG] == b"old"


def test_what_a_failed_sync_dropped_never_becomes_durable(machine: SimulatedMachine) -> None:
    """The second sync says that all is well; the pages were forgotten by the first."""
    written(machine)
    process = machine.process()
    fd = process.open(LOG, APPEND)
    machine.fail(Fault(error=errno.EIO, kinds=frozenset({"sync_data"})))
    with refused(errno.EIO):
        process.sync_data(fd)
    process.sync_data(fd)
    process.write(fd, b"more")
    process.sync_data(fd)
    assert machine.files() == {LOG: b"safelostmore"}
    machine.power_cut()

    assert machine.files() == {LOG: b"safe\0\0\0\0more"}


# -- faults ---------------------------------------------------------------------------------------


def test_a_fault_strikes_the_calls_it_names(machine: SimulatedMachine) -> None:
    """By kind, by file, by process, from a call on, so many times."""
    first, second = machine.process(), machine.process()
    machine.fail(
        Fault(error=errno.ESTALE, kinds=frozenset({"open"}), under=Path("/d"), process=0, times=2)
    )
    machine.fail(Fault(error=errno.EIO, kinds=frozenset({"mkdir"}), first=9, times=None))
    first.mkdir(Path("/d"))
    second.open(Path("/d/a"), APPEND)
    first.open(LOG, APPEND)
    for _ in range(2):
        with refused(errno.ESTALE):
            first.open(Path("/d/a"), APPEND)
    first.open(Path("/d/a"), APPEND)
    for number in range(3):
        first.mkdir(Path(f"/{number}"))
    for _ in range(2):
        with refused(errno.EIO):
            first.mkdir(Path("/9"))
    machine.mend()
    first.mkdir(Path("/9"))

    assert [call.kind for call in machine.calls[-3:]] == ["mkdir"] * 3
    assert machine.calls[4].path == Path("/d/a")


def test_a_call_may_do_its_work_and_fail_all_the_same(machine: SimulatedMachine) -> None:
    """A server's answer can be lost, and a failed close has closed."""
    process = machine.process()
    fd = process.open(LOG, APPEND)
    machine.fail(Fault(error=errno.EIO, kinds=frozenset({"unlink"}), done=True))
    machine.fail(Fault(error=errno.EIO, kinds=frozenset({"close"})))
    with refused(errno.EIO):
        process.unlink(LOG)
    with refused(errno.EIO):
        process.close(fd)

    assert machine.files() == {}
    assert machine.descriptors == []


def test_a_full_disk_takes_what_fits(machine: SimulatedMachine) -> None:
    """Then it refuses, until the last name of a file goes and nobody has it open."""
    process = machine.process()
    machine.capacity_bytes = 6
    fd = process.open(LOG, APPEND)
    assert process.write(fd, b"1234") == 4
    process.link(LOG, Path("/name"))
    other = process.open(Path("/other"), APPEND)
    assert process.write(other, b"1234") == 2
    process.unlink(LOG)
    process.close(fd)
    with refused(errno.ENOSPC):
        process.write(other, b"34")
    process.unlink(Path("/name"))

    assert process.write(other, b"34") == 2


def test_a_file_cannot_grow_beyond_the_limit(machine: SimulatedMachine) -> None:
    """As under RLIMIT_FSIZE."""
    machine.file_limit_bytes = 3
    process = machine.process()
    fd = process.open(LOG, APPEND)
    assert process.write(fd, b"1234") == 3
    with refused(errno.EFBIG):
        process.write(fd, b"4")


def test_a_write_may_be_short(machine: SimulatedMachine) -> None:
    """It takes as many bytes as the fault says."""
    process = machine.process()
    fd = process.open(LOG, APPEND)
    machine.fail(Fault(kinds=frozenset({"write"}), taken=1))
    assert (process.write(fd, b"1234"), process.write(fd, b"234")) == (1, 3)


def test_file_systems_without_locks_or_links(machine: SimulatedMachine) -> None:
    """They refuse such calls as the kernel does there."""
    machine.fail(NO_LOCKS)
    machine.fail(NO_LINKS)
    process = machine.process()
    fd = process.open(LOG, APPEND)
    with refused(errno.ENOLCK):
        process.lock(fd)
    with refused(errno.EPERM):
        process.link(LOG, Path("/other"))


@pytest.mark.parametrize(("bounds_reads", "read"), [(False, b"12345"), (True, b"123")])
def test_a_process_may_see_old_sizes_and_names(
    machine: SimulatedMachine, *, bounds_reads: bool, read: bytes
) -> None:
    """As the client of a network file system does, until it asks again."""
    writer, reader = machine.process(), machine.process()
    fd = writer.open(LOG, APPEND)
    writer.write(fd, b"123")
    reader.believed = machine.look(bounds_reads=bounds_reads)
    writer.write(fd, b"45")
    writer.open(Path("/new"), APPEND)
    mine = reader.open(LOG, os.O_RDONLY)

    assert (reader.fstat(mine).size, reader.names(Path("/"))) == (3, ["log"])
    assert reader.pread(mine, 9, 0) == read
    assert writer.fstat(fd).size == 5
    reader.believed = None
    assert reader.fstat(mine).size == 5


@pytest.mark.parametrize(
    ("inode", "same_number", "seen"),
    [("same", True, b"new"), ("new", False, b"old"), ("reused", True, b"old")],
)
def test_others_replace_files(
    machine: SimulatedMachine, inode: Any, *, same_number: bool, seen: bytes
) -> None:
    """In place, or by a new file, which may get the old one's inode number."""
    machine.put(LOG, b"old")
    process = machine.process()
    before = process.open(LOG, os.O_RDONLY)
    machine.put(LOG, b"new", inode=inode)
    after = process.open(LOG, os.O_RDONLY)

    assert process.pread(before, 9, 0) == seen
    assert process.pread(after, 9, 0) == b"new"
    assert (process.fstat(before).inode == process.fstat(after).inode) is same_number


def test_a_directory_goes_with_all_below_it(machine: SimulatedMachine) -> None:
    """As rotation removes a checkpoint; an open file lives on."""
    disk = Disk(machine.process())
    disk.make_directory(Path("/c/d"))
    handle = disk.append(Path("/c/d/a"))
    handle.write(b"x")
    machine.remove(Path("/c"))

    assert machine.files() == {}
    assert handle.read(0, 9) == b"x"


def test_unknown_flags_are_refused(machine: SimulatedMachine) -> None:
    """A flag that is not simulated is not taken for one that is."""
    with pytest.raises(ValueError, match="knows no flags"):
        machine.process().open(LOG, os.O_RDWR | os.O_TRUNC)
