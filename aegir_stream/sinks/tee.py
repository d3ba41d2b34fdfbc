"""Several sinks at once, none of which can hurt another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aegir_stream.errors import SinkClosedError
from aegir_stream.events import Gap, Note
from aegir_stream.typing import Append, Sealed, Sink

__all__ = ["TeeSink"]


class TeeSink:
    """Gives everything to each of its sinks, in the order in which they were named.

    When some fail with `OSError` the others still get the event; then the first error is raised.

    Args:
        sinks: where events go; the first that seals segments answers `seal`.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks
        self._closed = False

    async def open(self) -> None:
        """Open every sink."""
        await self._each(lambda sink: sink.open())

    async def write(self, append: Append) -> None:
        """Append to every sink."""
        self._require_open()
        await self._each(lambda sink: sink.write(append))

    async def mark(self, event: Gap | Note, *, stream: str) -> None:
        """Put a control event into every sink."""
        self._require_open()
        await self._each(lambda sink: sink.mark(event, stream=stream))

    async def seal(self, *, checkpoint: str, step: int) -> Sealed | None:
        """Seal every sink; return the first answer that is one."""
        self._require_open()
        answers: list[Sealed | None] = []

        async def seal(sink: Sink) -> None:
            answers.append(await sink.seal(checkpoint=checkpoint, step=step))

        await self._each(seal)
        return next((answer for answer in answers if answer), None)

    async def flush(self) -> None:
        """Flush every sink."""
        await self._each(lambda sink: sink.flush())

    async def aclose(self, *, status: str = "finished") -> None:
        """Close every sink."""
        self._closed = True
        await self._each(lambda sink: sink.aclose(status=status))

    async def _each(self, act: Callable[[Sink], Awaitable[None]]) -> None:
        errors: list[OSError] = []
        for sink in self._sinks:
            try:
                await act(sink)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _require_open(self) -> None:
        if self._closed:
            raise SinkClosedError("The sink is closed", hint="Write before closing it")
