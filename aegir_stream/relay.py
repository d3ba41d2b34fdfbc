"""Pass a stream on: from a source into a sink, for as long as the source has something to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable

from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.events import Checkpoint, Gap, Note, Rewound
from aegir_stream.selection import Selection
from aegir_stream.typing import Append, Sink

__all__ = ["relay"]


async def relay(
    deliveries: AsyncIterable[Delivery],
    sink: Sink,
    *,
    stream: str = "sae_features",
    selection: Selection | None = None,
) -> None:
    """Write what a source hands out into an open sink, until the iteration ends.

    Records become appends, gaps and notes are marked; what only a reader of the files is concerned
    with is left out. After each chunk the sink is flushed. A checkpoint seals the sink once, when
    every lane of the newest attempt has reached it; a lane that appears later is not waited for.

    Args:
        deliveries: what `RunSource.follow` yields, or a part of it.
        sink: where it goes; the caller opens and closes it.
        stream: name that the appends carry.
        selection: which records to pass on.

    Raises:
        OSError: the sink failed.
    """
    selection = selection or Selection()
    seals = _Seals()
    async for delivery in deliveries:
        match delivery:
            case Chunk() as chunk:
                seals.saw(chunk)
                if wanted := selection.of(chunk):
                    await sink.write(_append(wanted, stream))
                    await sink.flush()
            case Gap() | Note() as event:
                await sink.mark(event, stream=stream)
            case Checkpoint() as reached if seals.complete(reached):
                await sink.seal(checkpoint=reached.checkpoint, step=reached.step)
            case Rewound() as rewound:
                seals.rewind(rewound)


class _Seals:
    """Counts the lanes that have reached each checkpoint."""

    def __init__(self) -> None:
        self._attempts: dict[str, int] = {}  # by lane; 0 before its first record
        self._rewound_by = 0
        self._reached: Counter[Checkpoint] = Counter()
        self._sealed: set[Checkpoint] = set()

    def saw(self, chunk: Chunk) -> None:
        """Take in which lanes there are."""
        for lane in chunk.before.lanes:
            self._attempts.setdefault(lane, 0)
        self._attempts[chunk.lane] = chunk.attempt

    def complete(self, checkpoint: Checkpoint) -> bool:
        """Count a lane that reached a checkpoint; tell whether it is time to seal."""
        self._reached[checkpoint] += 1
        if checkpoint in self._sealed or self._reached[checkpoint] < self._awaited():
            return False
        self._sealed.add(checkpoint)
        return True

    def rewind(self, rewound: Rewound) -> None:
        """Let an attempt save again what it rewound."""
        if rewound.attempt <= self._rewound_by:
            return  # another lane of the same attempt
        self._rewound_by = rewound.attempt
        kept = -1 if rewound.to_step is None else rewound.to_step
        for checkpoint in [c for c in self._reached if c.step > kept]:
            del self._reached[checkpoint]
            self._sealed.discard(checkpoint)

    def _awaited(self) -> int:
        """Return the number of lanes that still write, as far as is known."""
        newest = max(self._attempts.values(), default=0)
        return sum(attempt in {0, newest} for attempt in self._attempts.values())


def _append(chunk: Chunk, stream: str) -> Append:
    steps = {head.step for head in chunk.heads}
    return Append(
        stream=stream,
        data=b"\n".join(chunk.records) + b"\n",
        records=len(chunk.records),
        step=steps.pop() if len(steps) == 1 else None,
    )
