"""Compare every file of a run with its checksums.

Reads only, takes no lock, and holds one piece of a file at a time. A run may be written meanwhile:
what a writer may still complete is no damage.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from aegir_stream.appends import Span, Tally
from aegir_stream.events import Seal
from aegir_stream.inventory import Content, LogFile, is_trailed, log_files, spans
from aegir_stream.layout import RunDirectory
from aegir_stream.remnants import Remnant, is_left_by_a_kill, remnants

__all__ = ["Damage", "Kind", "Verification", "check_file", "verify"]

Kind: TypeAlias = Literal["damaged", "interrupted"]
"""`damaged`: the bytes are not those that were written. `interrupted`: they are what a killed
writer leaves behind in the normal course: an unfinished line, or lines without their trailer."""

Inode: TypeAlias = tuple[int, int]


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """A range of bytes of a file that does not hold what it should.

    Attributes:
        path: the file.
        offset: where the range begins.
        length: its bytes; 0 where something is missing.
        reason: what is wrong.
        kind: whether that is damage, or what a killed writer leaves behind.
        records: number of records concerned, where it is known.
    """

    path: str
    offset: int
    length: int
    reason: str
    kind: Kind = "damaged"
    records: int | None = None


class Verification(Iterator[Damage]):
    """A check of a run that is under way: iterate for what is wrong.

    Attributes:
        files: number of files checked so far; several names of one file count once.
        records: number of records found whole.
        size_bytes: bytes that were read.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.files = 0
        self.records = 0
        self.size_bytes = 0
        self._closed: set[Inode] = set()
        self._live: dict[Inode, tuple[int, int]] = {}
        self._damage = self._check(run)

    def __next__(self) -> Damage:
        """Return the next range that is wrong."""
        return next(self._damage)

    def _check(self, run: RunDirectory) -> Iterator[Damage]:
        try:
            yield from _check_sidecars(run)
            for file in log_files(run):
                yield from self._check_file(run, file)
        except OSError as error:
            yield _unreadable(error, run.root)

    def _check_file(self, run: RunDirectory, file: LogFile) -> Iterator[Damage]:
        try:
            content = Content.of(run.disk, file.path)
            if content.inode not in self._closed:
                yield from self._check_content(file, content)
        except FileNotFoundError:
            return  # Sealed or rotated away meanwhile.
        except OSError as error:
            yield _unreadable(error, file.path)

    def _check_content(self, file: LogFile, content: Content) -> Iterator[Damage]:
        total = Tally()
        yield from check_file(file, content, total)
        if file.growing:
            self._live[content.inode] = total.records, content.size
        else:
            self._closed.add(content.inode)
            self._count(-1, *self._live.pop(content.inode, (0, 0)))
        self._count(1, total.records, content.size)

    def _count(self, sign: int, records: int, size: int) -> None:
        self.files += sign if size else 0
        self.records += sign * records
        self.size_bytes += sign * size


def verify(run: RunDirectory) -> Verification:
    """Check every file of a run: all streams, lanes and attempts, snapshots, manifest, sidecars.

    Raises:
        RunNotFoundError: there is no such directory.
        UnreadableRunError: it cannot be read.
    """
    return Verification(run.require())


def check_file(file: LogFile, content: Content, total: Tally) -> Iterator[Damage]:
    """Yield what is wrong in one file; count in `total` what is whole.

    Raises:
        OSError: the file cannot be read.
    """
    check = _check_trailed if is_trailed(file, content) else _check_plain
    return check(file, content, total)


# -- one file ----------------------------------------------------------------------------------


def _check_trailed(file: LogFile, content: Content, total: Tally) -> Iterator[Damage]:
    whole, last, end = True, None, 0
    for span in spans(content, growing=file.growing, total=total):
        last, end = span.control, span.end
        if span.reason and is_left_by_a_kill(span, file):
            yield from _interrupted(file, content, span)
        elif span.reason:
            whole = False
            yield _damage(content, span.start, span.end, span.reason, records=span.records)
        elif isinstance(last, Seal) and whole and not _agrees(last, total):
            whole = False
            reason = f"the seal counts {last.records} records, {total.records} are whole"
            lost = max(0, last.records - total.records)
            yield _damage(content, span.start, span.end, reason, records=lost)
    if file.sealed and whole and not isinstance(last, Seal):
        reason = "the seal is missing: the file was cut off"
        yield _damage(content, content.size, content.size, reason)
    if file.growing:
        # Lines behind the last trailer may still get theirs, but no line becomes a record.
        behind = remnants(file, content, start=end, end=content.size)
        yield from (_broken(content, each) for each in behind if each.state == "damaged")


def _check_plain(file: LogFile, content: Content, total: Tally) -> Iterator[Damage]:
    """Check a file without control lines: every line of it must be a record."""
    for remnant in remnants(file, content, start=0, end=content.size):
        line = remnant.line
        if remnant.state == "whole":
            total.records += 1
        elif line.finished or not file.growing:
            yield _broken(content, remnant)


def _interrupted(file: LogFile, content: Content, span: Span) -> Iterator[Damage]:
    """Tell what a killed writer left: whole lines in a row together, each other line by itself."""
    start, records = span.start, 0
    for remnant in remnants(file, content, start=span.start, end=span.end):
        if remnant.state == "whole":
            records += 1
            continue
        line = remnant.line
        yield from _whole_lines(content, start, line.offset, records)
        yield _broken(content, remnant)
        start, records = line.offset + line.length, 0
    yield from _whole_lines(content, start, span.end, records)


def _whole_lines(content: Content, start: int, end: int, records: int) -> Iterator[Damage]:
    if records:
        yield _damage(
            content,
            start,
            end,
            "whole lines without the checksum that their writer was killed before",
            kind="interrupted",
            records=records,
        )


def _broken(content: Content, remnant: Remnant) -> Damage:
    line = remnant.line
    end = line.offset + line.length
    if remnant.state == "torn":
        reason = "a line that its writer was killed in"
        return _damage(content, line.offset, end, reason, kind="interrupted")
    return _damage(content, line.offset, end, "this line is no record")


def _agrees(seal: Seal, total: Tally) -> bool:
    return (seal.records, seal.bytes, seal.crc32) == (total.records, total.size, total.crc32)


def _damage(
    content: Content,
    start: int,
    end: int,
    reason: str,
    *,
    kind: Kind = "damaged",
    records: int | None = None,
) -> Damage:
    return Damage(
        path=str(content.path),
        offset=start,
        length=end - start,
        reason=reason,
        kind=kind,
        records=records,
    )


# -- manifest and sidecars ---------------------------------------------------------------------


def _check_sidecars(run: RunDirectory) -> Iterator[Damage]:
    yield from _check_object(run.manifest_path, run.read_manifest)
    for checkpoint in run.checkpoints():
        path = checkpoint.path / run.cfg.metadata_filename
        yield from _check_object(path, functools.partial(run.read_metadata, checkpoint.name))


def _check_object(path: Path, read: Callable[[], dict[str, Any]]) -> Iterator[Damage]:
    try:
        read()
    except FileNotFoundError:
        return
    except OSError as error:
        yield _unreadable(error, path)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = f"this is no JSON object: {error}"
        yield Damage(path=str(path), offset=0, length=0, reason=reason)


def _unreadable(error: OSError, path: Path) -> Damage:
    reason = f"this cannot be read: {error.strerror or error}"
    return Damage(path=str(error.filename or path), offset=0, length=0, reason=reason)
