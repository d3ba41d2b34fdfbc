"""Damage to files, and where the records of a run stand in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import msgspec
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.events import GRPOMetrics
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks import JournalSink
from aegir_stream.typing import Append
from core.runs import drive

__all__ = ["Harm", "Line", "damaged", "feed", "harms", "lines_of", "lives", "segment_files"]

Harm: TypeAlias = tuple[str, float, int]
"""What happens to a file: its kind, where (a share of the file), and how much."""


class Line(msgspec.Struct, frozen=True):
    """A line of a file, without its newline."""

    path: Path
    start: int
    data: bytes

    @property
    def end(self) -> int:
        """Offset behind the newline."""
        return self.start + len(self.data) + 1


harms: st.SearchStrategy[Harm] = st.tuples(
    st.sampled_from(["flip", "nul", "cut", "insert"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 200),
)
"""Ways to damage a file."""


def damaged(content: bytes, harm: Harm) -> bytes:
    """Return a file's content after damage."""
    kind, where, size = harm
    at = int(where * len(content))
    if not content:
        return content
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << size % 8]) + content[at + 1 :]
    if kind == "nul":
        return (content[:at] + b"\x00" * size + content[at + size :])[: len(content)]
    if kind == "cut":
        return content[:at]
    return content[:at] + (b'garbage {"step":1}\n\x00\xff' * 20)[:size] + content[at:]


def segment_files(run: RunDirectory) -> list[Path]:
    """Return the closed segments of rank 0 and its live tail, oldest first."""
    closed = [file.path for file in run.history()]
    return [*closed, run.live("sae_features")]


def lines_of(path: Path) -> list[Line]:
    """Return the whole data lines of a file and where they stand."""
    lines, at = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        lines.append(Line(path, at, line))
        at += len(line) + 1
    return [line for line in lines if not codec.is_control(line.data)]


lives = st.lists(
    st.tuples(st.lists(st.integers(1, 3), max_size=3), st.binary(max_size=60)), max_size=4
)
"""The attempts that append to a feed: the sizes of their appends, and what a kill leaves behind."""


def feed(run: RunDirectory, attempts: Iterable[tuple[list[int], bytes]]) -> list[GRPOMetrics]:
    """Let attempts append to one feed; return what they wrote."""
    written: list[GRPOMetrics] = []
    path = run.live("grpo_metrics")
    for sizes, torn in attempts:
        sink = JournalSink(run)
        drive(sink.open())
        for size in sizes:
            rows = [GRPOMetrics(step=len(written) + n, ts=0.5) for n in range(size)]
            data = b"".join(map(codec.encode, rows))
            drive(sink.write(Append(stream="grpo_metrics", data=data, records=size)))
            written += rows
        for log in (*sink._feeds.values(), sink._chain):
            if log:
                log._writer._handle.close()
        if torn and path.exists():
            with path.open("ab") as file:
                file.write(torn)
    return written
