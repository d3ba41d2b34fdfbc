"""Readers that write down what is read of them, and the scalars recomputed from that alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import log
from typing import Any, Literal, NamedTuple

from hypothesis import strategies as st
from msgspec import Struct

from aegir_adapters.mixing import Reader, StreamMixer

NAMES = ("web/en", "web/de", "code", "sound/speech", "maths")


class Item(NamedTuple):
    """One item of a reader: where it comes from, and which of the shard's items it is."""

    reader: str
    shard: int
    number: int


class Event(NamedTuple):
    """What a reader saw: a pass `begin`, an `item` of it read, its `end`; or a `step` begin."""

    kind: str
    reader: str = ""
    shard: int = 0
    step: int = 0


class Source(NamedTuple):
    """A reader of `length` items, dealt to the shards in turn."""

    name: str
    length: int
    weight: float = 1.0
    on_end: Literal["cycle", "drop"] = "drop"

    def reader(self, log: list[Event] | None = None) -> Reader:
        """Return the reader, which writes what is read of it into a log."""
        opening = Opening(self, log if log is not None else [])
        return Reader(name=self.name, weight=self.weight, open=opening, on_end=self.on_end)

    def items(self, shards: int) -> list[Item]:
        """Return all items, of all shards."""
        return [Item(self.name, n % shards, n // shards) for n in range(self.length)]


class Opening(Struct, frozen=True):
    """Opens a source, and writes into a log what is read."""

    source: Source
    log: list[Event]

    def __call__(self, shard: int, shards: int) -> Iterator[Item]:
        """Begin a pass over one shard."""
        name = self.source.name
        self.log.append(Event("begin", name, shard))
        for number in range(len(range(shard, self.source.length, shards))):
            self.log.append(Event("item", name, shard))
            yield Item(name, shard, number)
        self.log.append(Event("end", name, shard))


class Breaking(Struct, frozen=True):
    """Opens five items, the fourth of which cannot be read."""

    reader: str

    def __call__(self, shard: int, shards: int) -> Iterator[Item]:
        """Begin a pass over one shard."""
        for number in range(5):
            if number == 3:
                raise OSError("no such block")
            yield Item(self.reader, shard, number)


def mixer_of(
    sources: Sequence[Source], log: list[Event] | None = None, **options: Any
) -> StreamMixer:
    """Return a mixer of sources that write into one log."""
    return StreamMixer([source.reader(log) for source in sources], **options)


@st.composite
def mixes(
    draw: st.DrawFn, *, on_end: Sequence[Literal["cycle", "drop"]] = ("cycle", "drop")
) -> list[Source]:
    """Up to five sources, some of them short or empty."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, len(NAMES)))]
    return [
        Source(
            name,
            draw(st.sampled_from([0, 1, 7, 40, 1000])),
            draw(st.sampled_from([0.01, 0.5, 1.0, 3.0])),
            draw(st.sampled_from(list(on_end))),
        )
        for name in names
    ]


class Deeds(NamedTuple):
    """What one rank does.

    Attributes:
        picks: how many items it takes, step by step.
        drains: steps at whose end the window is drained.
    """

    picks: list[int]
    drains: list[int]


@st.composite
def schedules(draw: st.DrawFn, *, ranks: int = 1) -> list[Deeds]:
    """What each rank does; all drain at the same steps."""
    steps = draw(st.integers(1, 8))
    drains = sorted(draw(st.sets(st.integers(1, steps), min_size=1)))
    counts = st.lists(st.integers(0, 12), min_size=steps, max_size=steps)
    return [Deeds(draw(counts), drains) for _ in range(ranks)]


class RankLog(NamedTuple):
    """What one rank has done.

    Attributes:
        events: all, in their order.
        shards: logical shards that it read.
    """

    events: list[Event]
    shards: list[int]


def scalars_by_hand(
    sources: Sequence[Source], logs: Sequence[RankLog], *, first: int, last: int
) -> dict[str, float | None]:
    """Return the seven scalars of the window of steps first..last, from all that ever happened."""
    counts: Counter[str] = Counter()
    pairs = switches = restarts = staleness = 0
    poorest = len(sources)
    for rank in logs:
        before: dict[int, str] = {}
        passes: Counter[tuple[str, int]] = Counter()
        empty_pass: dict[tuple[str, int], bool] = {}
        ended: set[tuple[str, int]] = set()
        picked_at = {source.name: 1 for source in sources}
        on_end = {source.name: source.on_end for source in sources}
        step = 1
        for event in rank.events:
            place = (event.reader, event.shard)
            if event.kind == "step":
                step = event.step
                if step > last:
                    break
            elif event.kind == "begin":
                passes[place] += 1
                restarts += first <= step and passes[place] > 1
                empty_pass[place] = True
            elif event.kind == "end" and (on_end[event.reader] == "drop" or empty_pass[place]):
                ended.add(place)
            elif event.kind == "item":
                empty_pass[place] = False
                if step >= first:
                    counts[event.reader] += 1
                    pairs += event.shard in before
                    switches += before.get(event.shard, event.reader) != event.reader
                before[event.shard] = event.reader
                picked_at[event.reader] = step
        for shard in rank.shards:
            poorest = min(poorest, sum((s.name, shard) not in ended for s in sources))
        waiting = [
            at
            for name, at in picked_at.items()
            if any((name, shard) not in ended for shard in rank.shards)
        ]
        staleness = max(staleness, last - min(waiting, default=last))
    return _scalars(sources, counts) | {
        "stream_mixing/switch_rate": switches / pairs if pairs else None,
        "stream_mixing/staleness_max_steps": staleness,
        "stream_mixing/reader_restarts": restarts,
        "stream_mixing/live_readers_min": poorest,
    }


def _scalars(sources: Sequence[Source], counts: Counter[str]) -> dict[str, float | None]:
    n, total = sum(counts.values()), sum(source.weight for source in sources)
    if not n:
        return dict.fromkeys(
            f"stream_mixing/{name}" for name in ("mix_tv", "modality_max_dev", "pick_entropy")
        )
    off = {source.name: counts[source.name] / n - source.weight / total for source in sources}
    groups: Counter[str] = Counter()
    for name, deviation in off.items():
        groups[name.split("/")[0] if "/" in name else "text"] += deviation  # type: ignore[assignment]
    nats = -sum(counts[name] / n * log(counts[name] / n) for name in off if counts[name])
    return {
        "stream_mixing/mix_tv": sum(map(abs, off.values())) / 2,
        "stream_mixing/modality_max_dev": max(map(abs, groups.values())),
        "stream_mixing/pick_entropy": nats / log(len(off)) if len(off) > 1 else 1.0,
    }
