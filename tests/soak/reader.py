"""A reader that lives through all rounds: python -m soak.reader KIND RUN SEED.

`steady`, `slow` and `surviving` follow the run; `hopping` opens it again and again with its cursor;
`hub` is a hub whose subscribers each go at their own pace. What is heard is said on standard
output, one line of JSON each, and nothing of it is kept.
"""

from __future__ import annotations

import os
import random
import sys
from contextlib import aclosing

import anyio
import msgspec

from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.cursor import Cursor
from aegir_stream.events import Corrupt, Gap, Reset, Rewound, SourceSwitch, Stalled
from aegir_stream.hub import Hub
from aegir_stream.layout import RunDirectory
from aegir_stream.source import RunSource

SUBSCRIBERS = 6
_LONGEST_LINE = 1000
KINDS = ("steady", "slow", "surviving", "hopping", "hub")


class Heard(msgspec.Struct, omit_defaults=True):
    """What one reader heard: records, or one of the things that happen between them.

    Attributes:
        by: number of the reader within its process.
        records: (step, first serial number, the one behind the last) of runs of records.
        rewound_to: last step that stands, after a resume; -1 for none.
        lost: records that a gap tells of.
        wrong: what should not have happened, in words.
    """

    by: int = 0
    records: list[tuple[int, int, int]] = []
    rewound_to: int | None = None
    lost: int = 0
    wrong: str = ""


class _Numbered(msgspec.Struct):
    step: int
    completion: int


_decoder = msgspec.json.Decoder(_Numbered)


def say(delivery: Delivery, *, by: int = 0) -> None:
    """Pass a delivery on."""
    heard = understood(delivery, by=by)
    if heard:
        data = msgspec.json.encode(heard) + b"\n"
        while data:
            data = data[os.write(1, data) :]


def understood(delivery: Delivery, *, by: int) -> Heard | None:
    """Return what a delivery means to the oracle; `None` if nothing."""
    match delivery:
        case Chunk():
            return Heard(by=by, records=_runs_of(delivery))
        case Rewound(to_step=to_step):
            return Heard(by=by, rewound_to=-1 if to_step is None else to_step)
        case Gap(records=records):
            return Heard(by=by, lost=records)
    return Heard(by=by, wrong=repr(delivery)) if _is_wrong(delivery) else None


def _is_wrong(delivery: Delivery) -> bool:
    """Tell what no reader may hear of: nothing is ever damaged here but torn lines."""
    match delivery:
        case Reset() | Stalled():
            return True
        case SourceSwitch(verdict=verdict):
            return verdict not in {None, "resumed"}
        case Corrupt(length=length):
            return length > _LONGEST_LINE
    return False


def _runs_of(chunk: Chunk) -> list[tuple[int, int, int]]:
    """Return the serial numbers of a chunk, neighbours of one step taken together."""
    runs: list[tuple[int, int, int]] = []
    for record in map(_decoder.decode, chunk.records):
        if runs and (runs[-1][0], runs[-1][2]) == (record.step, record.completion):
            runs[-1] = (record.step, runs[-1][1], record.completion + 1)
        else:
            runs.append((record.step, record.completion, record.completion + 1))
    return runs


class Reader:
    """One process that reads.

    Args:
        run: the run directory.
        seed: of its pace.
    """

    def __init__(self, run: RunDirectory, seed: int) -> None:
        self._run = run
        self._random = random.Random(seed)  # noqa: S311 - pace, not secrets

    async def steady(self) -> None:
        """Read every attempt as it is written."""
        await self._follow(RunSource(self._run, start="start", attempts="all"))

    async def slow(self) -> None:
        """Read every attempt, with pauses."""
        await self._follow(RunSource(self._run, start="start", attempts="all"), longest_s=0.02)

    async def surviving(self) -> None:
        """Read what survives."""
        await self._follow(RunSource(self._run, start="start"))

    async def hopping(self) -> None:
        """Read a little, go away in the middle of something, and come back with the cursor."""
        after: str | None = None
        while True:
            source = RunSource(self._run, after=after, start="start", poll_s=(0.001, 0.02))
            patience = self._random.randint(1, 30)
            async with aclosing(source.follow_placed()) as deliveries:
                async for delivery, place in deliveries:
                    patience -= 1
                    last = self._first_part(delivery) if patience <= 0 else delivery
                    say(last)
                    after = _behind(last, place) or after
                    if patience <= 0:
                        break
            await self._dawdle(0.05)

    def _first_part(self, delivery: Delivery) -> Delivery:
        """Return some of the records of a chunk, or anything else as it is."""
        if not isinstance(delivery, Chunk):
            return delivery
        count = self._random.randint(1, len(delivery.records))
        return msgspec.structs.replace(
            delivery,
            records=delivery.records[:count],
            heads=delivery.heads[:count],
            ends=delivery.ends[:count],
        )

    async def hub(self) -> None:
        """Share one tail among subscribers, some of whom stop for long."""
        hub: Hub[None] = Hub(
            lambda after, start: RunSource(self._run, after=after, start=start),
            render=lambda _: None,
            ring_bytes=64 << 10,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.run)
            for number in range(SUBSCRIBERS):
                tasks.start_soon(self._subscribe, hub, number)

    async def _subscribe(self, hub: Hub[None], number: int) -> None:
        async with aclosing(hub.subscribe(start="start")) as blocks:
            async for block in blocks:
                say(block.delivery, by=number)
                if number:
                    await self._dawdle(0.01 * number)

    async def _follow(self, source: RunSource, *, longest_s: float = 0.0) -> None:
        async with aclosing(source.follow()) as deliveries:
            async for delivery in deliveries:
                say(delivery)
                if longest_s:
                    await self._dawdle(longest_s)

    async def _dawdle(self, longest_s: float) -> None:
        """Be slow now and then. Nothing is waited for here."""
        if self._random.random() < 0.3:
            with anyio.move_on_after(self._random.uniform(0, longest_s)):
                await anyio.sleep_forever()


def _behind(delivery: Delivery, place: Cursor) -> str | None:
    """Return the cursor behind what was read; `None` while there is no place yet."""
    if isinstance(delivery, Chunk):
        return delivery.after.text()
    return place.text() if place.lanes else None


if __name__ == "__main__":
    reader = Reader(RunDirectory.at(sys.argv[2]), int(sys.argv[3]))
    anyio.run(getattr(reader, sys.argv[1]))
