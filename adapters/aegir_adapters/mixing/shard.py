"""One logical shard: its own picks, and its own place in every reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from aegir_adapters.mixing.meter import MeterRow
from aegir_adapters.mixing.reader import Reader, ReaderError
from aegir_adapters.mixing.schedule import Choice, Schedule
from aegir_adapters.mixing.state import Place, ShardState

__all__ = ["ENDED", "LogicalShard"]

ENDED: Any = object()
"""Stands for the item after the last."""


class LogicalShard:
    """Draws items from its readers until all have ended.

    Args:
        number: which of the logical shards.
        shards: how many there are.
        readers: what is mixed.
        seed: of the mix.
        row: counts what is picked.
        timed: whether the time in readers is measured.

    Attributes:
        number: as given.
        draws: picks made, those that found a reader at its end included.
        last: reader of the newest item, -1 before the first.
        live: readers that have not ended.
        places: where each reader stands.
    """

    def __init__(
        self,
        number: int,
        *,
        shards: int,
        readers: Sequence[Reader],
        seed: int,
        row: MeterRow,
        timed: bool = False,
    ) -> None:
        self.number, self._shards, self._readers, self._row = number, shards, readers, row
        self._cells, self._stays = row.cells, len(readers)
        self._timed = timed
        self._schedule = Schedule(seed, number)
        self._weights = [reader.weight for reader in readers]
        self._open: list[Iterator[Any] | None] = [None] * len(readers)
        self.draws = 0
        self.last = -1
        self.live = 0
        self.places = [Place() for _ in readers]
        self._reading = _Reading(number, shards, readers, self.places)
        self._settle()

    def state(self) -> ShardState:
        """Return where this shard stands: a copy."""
        places = {
            reader.name: Place(passes=place.passes, items=place.items, ended=place.ended)
            for reader, place in zip(self._readers, self.places, strict=True)
        }
        last = self._readers[self.last].name if self.last >= 0 else None
        return ShardState(draws=self.draws, last=last, places=places)

    def restore(self, state: ShardState) -> None:
        """Go on where a shard stood: readers are matched by name, new ones begin at their start."""
        self.draws = state.draws
        names = [reader.name for reader in self._readers]
        self.last = names.index(state.last) if state.last in names else -1
        for number, reader in enumerate(self._readers):
            place = state.places.get(reader.name, Place())
            if place.ended and place.items and reader.on_end == "cycle":  # it was `drop` before
                place = Place(passes=place.passes + 1)
            self.places[number] = Place(passes=place.passes, items=place.items, ended=place.ended)
        self._settle()
        for number, place in enumerate(self.places):
            if place.ended:
                self._row.end(number, left=self.live)

    def _settle(self) -> None:
        """Choose among the readers that have not ended."""
        left = [reader for reader, place in enumerate(self.places) if not place.ended]
        self.live = len(left)
        self._choice = Choice(self._weights, left) if left else None

    def next(self) -> Any:
        """Return the next item, `ENDED` when all readers have ended.

        Raises:
            ReaderError: a reader raised.
        """
        while self._choice is not None:
            reader = self._choice.at(self._schedule.uniform(self.draws))
            self._reading.reader = reader
            began = perf_counter_ns() if self._timed else 0
            with self._reading:
                item = self._read(reader)
            # The pick site. Counted here and not in a method, which would take twice as long.
            cells = self._cells
            if began:
                cells[self._stays + 3] += perf_counter_ns() - began
            self.draws += 1
            if item is not ENDED:
                cells[reader] += 1
                if reader == self.last:
                    cells[self._stays] += 1
                elif self.last >= 0:
                    cells[self._stays + 1] += 1
                self.last = reader
                return item
            self.places[reader].ended = True
            self._settle()
            self._row.end(reader, left=self.live)
        return ENDED

    def _read(self, reader: int) -> Any:
        """Return a reader's next item, of the next pass where this one is over."""
        place = self.places[reader]
        iterator = self._open[reader]
        if iterator is None:
            iterator = self._open[reader] = self._opened(reader, skipped=place.items)
        item = next(iterator, ENDED)
        # A pass without items is not begun again: it would never yield one.
        if item is ENDED and place.items and self._readers[reader].on_end == "cycle":
            place.passes, place.items = place.passes + 1, 0
            self._row.restart()
            iterator = self._open[reader] = self._opened(reader)
            item = next(iterator, ENDED)
        if item is ENDED:
            self._open[reader] = None
        else:
            place.items += 1
        return item

    def _opened(self, reader: int, *, skipped: int = 0) -> Iterator[Any]:
        """Return a pass that begins behind the items that were read already."""
        items = self._readers[reader].open(self.number, self._shards)
        if not skipped:
            return iter(items)
        if hasattr(items, "skip"):
            return iter(items.skip(skipped))
        if isinstance(items, Sequence):
            return (items[index] for index in range(skipped, len(items)))
        return islice(iter(items), skipped, None)


class _Reading:
    """Names the reader and its item in whatever a reader raises."""

    __slots__ = ("_number", "_places", "_readers", "_shards", "reader")

    def __init__(
        self, number: int, shards: int, readers: Sequence[Reader], places: Sequence[Place]
    ) -> None:
        self._number, self._shards = number, shards
        self._readers, self._places = readers, places
        self.reader = 0

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(exc, Exception):
            name, place = self._readers[self.reader].name, self._places[self.reader]
            raise ReaderError(
                f"Reader {name!r} failed at item {place.items} of pass {place.passes} in shard"
                f" {self._number} of {self._shards} (all counted from 0):"
                f" {type(exc).__name__}: {exc}"
            ) from exc
