"""Read the events of one step, without reading those of the others.

For those who look at a step or a completion and not at the run: `replay` reads everything.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from aegir_stream.inventory import Content
from aegir_stream.layout import STREAMS, RunDirectory
from aegir_stream.lineage import Place, survey
from aegir_stream.opening import step_of
from aegir_stream.stretches import FileIndex, Stretch, first_step
from aegir_stream.surviving import Cuts

__all__ = ["StepReader"]

_MOST_INDICES = 256


class _File(msgspec.Struct, frozen=True):
    """A file of the stream whose records survive, cuts aside."""

    lane: str
    place: Place
    content: Content

    @property
    def last_step(self) -> int | None:
        """The last step in it, where a checkpoint says that."""
        return step_of(self.place.source) if self.place.sealed else None


class StepReader:
    """Reads single steps of one stream, as they survive.

    A step is found by what stands between the records: checkpoints in names, trailers behind
    appends. So it costs the reading of that step and a small read for each other append, the
    latter once. Files without control lines are taken to be in order of step.

    Order: that of each lane, lane by lane. One thread at a time uses it.

    Args:
        run: the run directory; it need not exist yet.
        stream: name of the stream.
    """

    def __init__(self, run: RunDirectory, stream: str) -> None:
        self._run = run
        self._stream = STREAMS[stream]
        self._indices: dict[tuple[int, int], FileIndex] = {}

    def steps(self) -> list[int]:
        """Return the steps that have events, in ascending order.

        Raises:
            OSError: a file cannot be read, or was replaced meanwhile.
        """
        files, cuts = self._look()
        found: set[int] = set()
        for file in files:
            index = self._index(file)
            for stretch in index.stretches():
                last = cuts.before(lane=file.lane, attempt=stretch.attempt)
                steps = index.steps(stretch)
                found.update(step for step in steps if last is None or step <= last)
        return sorted(found)

    def lines(self, step: int) -> Iterator[bytes]:
        """Yield the events of a step as they stand in the log, without their newlines.

        Raises:
            OSError: a file cannot be read, or was replaced meanwhile: what was yielded is right,
                and may not be all.
        """
        files, cuts = self._look()
        for file in files:
            if not self._may_hold(file, step):
                continue
            index = self._index(file)
            for stretch in index.stretches():
                if _survives(stretch, step, cuts.before(lane=file.lane, attempt=stretch.attempt)):
                    yield from index.lines(stretch, step)

    def _look(self) -> tuple[list[_File], Cuts]:
        """Return the files, and what was rewound in them."""
        files, cuts = [], Cuts()
        for lane in self._run.lanes(self._stream.name):
            lineage = survey(self._run, stream=self._stream.name, lane=lane)
            for place in lineage.places.values():
                if header := place.header(self._run):
                    cuts.add(header)
                    if self._stream.sealed:
                        cuts.follow(lane, header.attempt)
            places = [lineage.places[number] for number in lineage.surviving(self._run)]
            files += [_File(lane, place, self._content(place)) for place in places]
        self._indices = dict([*self._indices.items()][-_MOST_INDICES:])
        if not self._stream.sealed:
            for file in files:
                for opening in self._index(file).openings:
                    cuts.add(opening)
        return files, cuts

    def _content(self, place: Place) -> Content:
        content = Content.of(self._run.disk, place.path)
        if place.inode is not None and place.inode != content.inode:
            raise FileNotFoundError(f"another file has taken the place of {place.path}")
        return content

    def _may_hold(self, file: _File, step: int) -> bool:
        """Tell whether a step may be in a file, from a look at its name and its first record."""
        if file.last_step is not None and file.last_step < step:
            return False
        if not self._stream.sealed or file.content.inode in self._indices:
            return True
        first = first_step(file.content, self._stream.kind)
        return first is not None and first <= step

    def _index(self, file: _File) -> FileIndex:
        index = self._indices.setdefault(file.content.inode, FileIndex(self._stream.kind))
        index.look(file.content)
        return index


def _survives(stretch: Stretch, step: int, last: int | None) -> bool:
    return (stretch.step is None or stretch.step == step) and (last is None or step <= last)
