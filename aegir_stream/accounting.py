"""What a recorder counts: what it has done, and what was lost until its readers are told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec

from aegir_stream.errors import WriteLostError
from aegir_stream.events import Gap
from aegir_stream.typing import EventBatch

__all__ = ["Account", "RecorderStatistics"]


class RecorderStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorder has done so far.

    Attributes:
        records_written: records that the sink took.
        records_dropped: records refused by a full queue or lost by failed writes.
        batches: batches written.
        bytes_written: encoded bytes written.
        queued_bytes: memory held by the queue now.
        errors: failures of any kind that were kept from the caller.
        last_error: the latest of them, as text.
        encode_ms: CPU time that the recorder's thread used for encoding. Waiting is left out: for
            the disk because it costs training nothing, for the interpreter because training has it.
        write_ms: CPU time that it used in the sink.
    """

    records_written: int = 0
    records_dropped: int = 0
    batches: int = 0
    bytes_written: int = 0
    queued_bytes: int = 0
    errors: int = 0
    last_error: str | None = None
    encode_ms: float = 0.0
    write_ms: float = 0.0


class Account:
    """Counts, and one `Gap` for each stream and reason of a loss, grown until it is told.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._counts: dict[str, Any] = msgspec.structs.asdict(RecorderStatistics())
        self._gaps: dict[tuple[str, str], Gap] = {}

    def unlock(self) -> None:
        """Replace a lock that may be held for ever, in a forked child."""
        self._lock = threading.RLock()

    def statistics(self, *, queued_bytes: int) -> RecorderStatistics:
        """Return the counts so far."""
        with self._lock:
            return RecorderStatistics(**self._counts | {"queued_bytes": queued_bytes})

    def add(self, **counts: float) -> None:
        """Add to counts."""
        with self._lock:
            for name, count in counts.items():
                # In one step: a signal handler that emits has this thread's lock.
                self._counts[name] += count

    def add_error(self, last_error: str) -> int:
        """Count an error; return how many there were."""
        with self._lock:
            self._counts["errors"] += 1
            self._counts["last_error"] = last_error
            errors: int = self._counts["errors"]
        return errors

    def wrote(self, batch: EventBatch, data: bytes, *, encode_s: float, write_s: float) -> None:
        """Count a batch that the sink took, and the CPU time for it."""
        self.add(
            records_written=batch.records,
            batches=1,
            bytes_written=len(data),
            encode_ms=1e3 * encode_s,
            write_ms=1e3 * write_s,
        )

    # -- losses ------------------------------------------------------------------------------------

    def lose(self, batch: EventBatch, reason: str) -> None:
        """Count a batch as lost, to be told in the log as soon as that is possible."""
        gap = Gap(records=batch.records, reason=reason, first_step=batch.step, last_step=batch.step)
        self.put_back(batch.stream, gap)
        self.add(records_dropped=batch.records)

    def wrote_part(self, batch: EventBatch, error: WriteLostError) -> None:
        """Count a batch of which the sink took a part; it tells of the rest by itself."""
        lost = error.records_lost
        self.add(records_written=batch.records - lost, records_dropped=lost)

    def take_losses(self, stream: str | None = None) -> list[tuple[str, Gap]]:
        """Return what was lost in a stream, or in all of them, and forget it."""
        with self._lock:
            taken = [key for key in self._gaps if stream in {None, key[0]}]
            return [(key[0], self._gaps.pop(key)) for key in taken]

    def put_back(self, stream: str, gap: Gap) -> None:
        """Remember a loss that could not be told."""
        with self._lock:
            there = self._gaps.get((stream, gap.reason))
            self._gaps[stream, gap.reason] = _both(there, gap) if there else gap


def _both(one: Gap, other: Gap) -> Gap:
    return Gap(
        records=one.records + other.records,
        reason=one.reason,
        first_step=_of_known(min, one.first_step, other.first_step),
        last_step=_of_known(max, one.last_step, other.last_step),
    )


def _of_known(choose: Callable[[list[int]], int], *steps: int | None) -> int | None:
    known = [step for step in steps if step is not None]
    return choose(known) if known else None
