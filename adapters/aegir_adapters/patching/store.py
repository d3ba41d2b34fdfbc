"""Captured runs, kept for the sweeps that patch from them.

A run is listed under its name until it is dropped, replaced or evicted. Whoever reads it holds a
lease; a run that is no longer listed lives on, unseen, until its last lease has ended. So an owner
can drop a run at any time, and a sweep never loses its source half-way.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from aegir_adapters.patching.manifest import RunManifest, StoreStatistics
from aegir_adapters.patching.sources import SourceRun
from aegir_stream.clock import SystemClock
from aegir_stream.errors import AegirError
from aegir_stream.typing import Clock

__all__ = ["Lease", "LeaseEndedError", "RunStore"]

BUDGET_BYTES = 1 << 31
"""Memory for captured runs: 2 GiB."""

LEASE_TTL_S = 300.0
"""A lease that nobody has renewed for five minutes belongs to somebody who died."""


class LeaseEndedError(AegirError, RuntimeError):
    """A run was read through a lease that had been released."""


class _Held:
    """A run in memory, and who reads it until when."""

    __slots__ = ("deadlines", "run", "run_id", "size_bytes", "transient")

    def __init__(self, run_id: str, run: SourceRun, *, transient: bool) -> None:
        self.run_id = run_id
        self.run = run
        self.size_bytes = run.size_bytes
        self.transient = transient
        self.deadlines: dict[Lease, float] = {}

    def manifest(self) -> RunManifest:
        dtypes = {str(tensor.dtype) for tensor in self.run.activations.values()}
        return RunManifest(
            run_id=self.run_id,
            model_id=self.run.model_id,
            num_prompt_tokens=len(self.run.token_ids),
            sites=tuple(self.run.activations),
            layers=self.run.layers,
            positions=len(self.run.positions),
            dtype=dtypes.pop().removeprefix("torch.") if dtypes else "",
            size_bytes=self.size_bytes,
            leases=len(self.deadlines),
            transient=self.transient,
        )


class Lease:
    """The right to read a stored run; release it, or use it as a context manager.

    Attributes:
        run_id: the run's name.
    """

    def __init__(self, store: RunStore, held: _Held) -> None:
        self.run_id = held.run_id
        self._store = store
        self._held: _Held | None = held

    @property
    def run(self) -> SourceRun:
        """The run.

        Raises:
            LeaseEndedError: the lease was released.
        """
        if self._held is None:
            raise LeaseEndedError(
                f"Expected a lease that is held, got a released one of run {self.run_id!r}",
                hint="Read the run before the lease is released",
            )
        return self._held.run

    def renew(self) -> None:
        """Start the lease's time again. Nothing happens once it is released."""
        if self._held is not None:
            self._store._renew(self, self._held)  # noqa: SLF001 - two halves of one concept

    def keep(self) -> None:
        """Let the run stay when its last lease ends. Nothing happens once this is released."""
        if self._held is not None:
            self._store._keep(self._held)  # noqa: SLF001 - likewise

    def replace(self, run: SourceRun) -> None:
        """Put another run in the place of this one, which others go on to read.

        It is listed if this one is. Nothing happens once the lease is released.
        """
        if self._held is not None:
            self._held = self._store._replace(self, self._held, run)

    def release(self) -> None:
        """End the lease. Idempotent."""
        held, self._held = self._held, None
        if held is not None:
            self._store._release(self, held)  # noqa: SLF001 - likewise

    def __enter__(self) -> Self:
        """Return the lease."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release it."""
        self.release()


class RunStore:
    """Captured runs by name, the least recently used evicted first. Thread-safe; never blocks long.

    The budget is soft: leased runs and the one used last are never evicted, so a single run larger
    than the budget is kept, and leased runs may exceed it together.

    Args:
        budget_bytes: memory that runs should stay below.
        lease_ttl_s: how long a lease lasts that nobody renews.
        clock: tells when leases expire.
    """

    def __init__(
        self,
        *,
        budget_bytes: int = BUDGET_BYTES,
        lease_ttl_s: float = LEASE_TTL_S,
        clock: Clock | None = None,
    ) -> None:
        self._budget_bytes = budget_bytes
        self._lease_ttl_s = lease_ttl_s
        self._clock = clock or SystemClock()
        self._listed: OrderedDict[str, _Held] = OrderedDict()
        self._lingering: set[_Held] = set()
        self._changed = threading.Condition()
        self._hits = self._misses = self._evicted = self._dropped = self._expired = 0

    def put(self, run_id: str, run: SourceRun, *, transient: bool = False) -> Lease:
        """List a run, in the place of one of the same name, and return a lease of it.

        Args:
            run_id: its name.
            run: its activations; not copied.
            transient: whether it goes with its last lease.
        """
        with self._changed:
            self._expire()
            self._unlist(run_id)
            self._listed[run_id] = _Held(run_id, run, transient=transient)
            return self._lease(run_id)

    def lease(self, run_id: str) -> Lease | None:
        """Return a lease of a listed run, then the one used last; `None` if there is none."""
        with self._changed:
            self._expire()
            if run_id not in self._listed:
                self._misses += 1
                return None
            self._hits += 1
            return self._lease(run_id)

    def drop(self, run_id: str) -> bool:
        """Unlist a run, leased or not; return whether it was listed.

        Its memory is freed at once, or with its last lease.
        """
        with self._changed:
            self._expire()
            dropped = self._unlist(run_id)
            self._dropped += dropped
            return dropped

    def clear(self) -> int:
        """Unlist all runs, as after a change of the model's weights; return how many there were."""
        with self._changed:
            self._expire()
            count = sum(self._unlist(run_id) for run_id in tuple(self._listed))
            self._dropped += count
            return count

    def manifest(self, run_id: str) -> RunManifest | None:
        """Return what a listed run holds, without using it; `None` if there is none."""
        with self._changed:
            self._expire()
            held = self._listed.get(run_id)
            return held.manifest() if held is not None else None

    def manifests(self) -> tuple[RunManifest, ...]:
        """Return what all listed runs hold, the least recently used first."""
        with self._changed:
            self._expire()
            return tuple(held.manifest() for held in self._listed.values())

    def statistics(self) -> StoreStatistics:
        """Return what the store holds and what it has done."""
        with self._changed:
            self._expire()
            return StoreStatistics(
                runs=len(self._listed),
                leases=sum(len(held.deadlines) for held in self._all()),
                budget_bytes=self._budget_bytes,
                listed_bytes=_size(self._listed.values()),
                lingering_bytes=_size(self._lingering),
                hits=self._hits,
                misses=self._misses,
                evicted=self._evicted,
                dropped=self._dropped,
                expired=self._expired,
            )

    def wait_unused(self, timeout_s: float | None = None) -> bool:
        """Block until no lease is held; return whether that came about in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not any(held.deadlines for held in self._all()), timeout_s
            )

    def _lease(self, run_id: str) -> Lease:
        held = self._listed[run_id]
        self._listed.move_to_end(run_id)
        lease = Lease(self, held)
        held.deadlines[lease] = self._clock.monotonic() + self._lease_ttl_s
        self._evict()
        return lease

    def _renew(self, lease: Lease, held: _Held) -> None:
        with self._changed:
            # A lease that had expired while its run was unlisted holds that memory again.
            if self._listed.get(held.run_id) is not held:
                self._lingering.add(held)
            held.deadlines[lease] = self._clock.monotonic() + self._lease_ttl_s
            self._expire()
            self._evict()

    def _replace(self, lease: Lease, held: _Held, run: SourceRun) -> _Held:
        with self._changed:
            new = _Held(held.run_id, run, transient=held.transient)
            held.deadlines.pop(lease, None)
            if self._listed.get(held.run_id) is held:
                self._unlist(held.run_id)
                self._listed[held.run_id] = new
            else:
                self._lingering.add(new)
                self._after_use(held)
            new.deadlines[lease] = self._clock.monotonic() + self._lease_ttl_s
            self._evict()
            return new

    def _keep(self, held: _Held) -> None:
        with self._changed:
            held.transient = False

    def _release(self, lease: Lease, held: _Held) -> None:
        with self._changed:
            held.deadlines.pop(lease, None)
            self._after_use(held)
            self._expire()
            self._evict()
            self._changed.notify_all()

    def _expire(self) -> None:
        now = self._clock.monotonic()
        for held in self._all():
            late = [lease for lease, deadline in held.deadlines.items() if deadline <= now]
            for lease in late:
                del held.deadlines[lease]
            self._expired += len(late)
            if late:
                self._after_use(held)
                self._evict()
                self._changed.notify_all()

    def _after_use(self, held: _Held) -> None:
        """Let go of a run that nobody reads any more, unless it is to stay."""
        if held.deadlines:
            return
        self._lingering.discard(held)
        if held.transient and self._listed.get(held.run_id) is held:
            self._dropped += self._unlist(held.run_id)

    def _unlist(self, run_id: str) -> bool:
        held = self._listed.pop(run_id, None)
        if held is not None and held.deadlines:
            self._lingering.add(held)
        return held is not None

    def _evict(self) -> None:
        last = next(reversed(self._listed), None)
        over_bytes = _size(self._all()) - self._budget_bytes
        for held in tuple(self._listed.values()):
            if over_bytes <= 0:
                return
            if held.deadlines or held.run_id == last:
                continue
            self._unlist(held.run_id)
            self._evicted += 1
            over_bytes -= held.size_bytes

    def _all(self) -> tuple[_Held, ...]:
        return (*self._listed.values(), *self._lingering)


def _size(runs: Iterable[_Held]) -> int:
    return sum(held.size_bytes for held in runs)
