"""A reader in a process of its own, that says what it reads.

Run as `python -m system.following RUN STREAM WRITERS`. Every delivery becomes a line of JSON on
standard output. It ends when so many writers have closed the stream as `finished` and it is read to
its end.
"""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import Any

import anyio
import msgspec

from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.events import CaughtUp, Closed
from aegir_stream.layout import RunDirectory
from aegir_stream.source import RunSource


class Heard(msgspec.Struct, omit_defaults=True):
    """One delivery as the following process passes it on.

    Attributes:
        kind: name of the delivery's type.
        serials: (step, completion) of each record of a chunk.
        what: everything else that the delivery says.
    """

    kind: str
    serials: list[tuple[int, int]] = []
    what: dict[str, Any] = {}


def heard(delivery: Delivery) -> Heard:
    """Return what is passed on of a delivery."""
    kind = type(delivery).__name__
    if isinstance(delivery, Chunk):
        numbered = [msgspec.json.decode(record) for record in delivery.records]
        return Heard(kind, [(each["step"], each["completion"]) for each in numbered])
    return Heard(kind, what=msgspec.to_builtins(delivery))


def delivered(said: list[Heard]) -> list[tuple[int, int]]:
    """Return (step, completion) of every record in the order of the deliveries."""
    return [serial for each in said for serial in each.serials]


def standing(said: list[Heard]) -> list[tuple[int, int]]:
    """Return (step, completion) of the records that no later attempt rewound."""
    held: list[tuple[int, int]] = []
    for each in said:
        if each.kind == "Rewound":
            to_step = each.what.get("to_step", -1)
            held = [(step, serial) for step, serial in held if step <= to_step]
        held += each.serials
    return held


def _source(run: RunDirectory, stream: str) -> RunSource:
    # A follower may find the run when attempts of it are over: it is to see those as well.
    return RunSource(run, stream, start="start", attempts="all")


async def _follow(run: RunDirectory, stream: str, writers: int) -> None:
    async with aclosing(_source(run, stream).follow()) as deliveries:
        async for delivery in deliveries:
            sys.stdout.buffer.write(msgspec.json.encode(heard(delivery)) + b"\n")
            sys.stdout.buffer.flush()
            writers -= delivery == Closed(status="finished")
            if writers == 0 and isinstance(delivery, CaughtUp):
                return


if __name__ == "__main__":
    anyio.run(_follow, RunDirectory.at(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
