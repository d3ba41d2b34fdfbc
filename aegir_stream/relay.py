"""Pass a stream on: from a source into a sink, for as long as the source has something to say."""

from __future__ import annotations

from collections.abc import AsyncIterable

from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.events import Checkpoint, Gap, Note
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

    Records become appends, checkpoints seal, gaps and notes are marked; what only a reader of the
    files is concerned with is left out. After each chunk the sink is flushed.

    Args:
        deliveries: what `RunSource.follow` yields, or a part of it.
        sink: where it goes; the caller opens and closes it.
        stream: name that the appends carry.
        selection: which records to pass on.

    Raises:
        OSError: the sink failed.
    """
    selection = selection or Selection()
    async for delivery in deliveries:
        match delivery:
            case Chunk() as chunk:
                if wanted := selection.of(chunk):
                    await sink.write(_append(wanted, stream))
                    await sink.flush()
            case Gap() | Note() as event:
                await sink.mark(event, stream=stream)
            case Checkpoint(checkpoint=checkpoint, step=step):
                await sink.seal(checkpoint=checkpoint, step=step)


def _append(chunk: Chunk, stream: str) -> Append:
    steps = {head.step for head in chunk.heads}
    return Append(
        stream=stream,
        data=b"\n".join(chunk.records) + b"\n",
        records=len(chunk.records),
        step=steps.pop() if len(steps) == 1 else None,
    )
