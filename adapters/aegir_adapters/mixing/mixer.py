"""Readers mixed by weight, as a torch dataset that resumes exactly and reshards without loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from aegir_adapters.mixing.exchange import world_of
from aegir_adapters.mixing.formulas import Targets
from aegir_adapters.mixing.meter import MixMeter
from aegir_adapters.mixing.reader import Reader, _modality_for_reader, checked_readers
from aegir_adapters.mixing.shard import ENDED, LogicalShard
from aegir_adapters.mixing.state import MixState, StateError, change
from aegir_stream.errors import OptionError

__all__ = ["StreamMixer"]

_logger = logging.getLogger("aegir_stream")


class StreamMixer(IterableDataset[Any]):
    """Items of several readers, picked by weight.

    The stream is cut into `shards` logical shards, a fixed number. Each has its own random picks
    and its own place in every reader, and lives on one rank and in one `DataLoader` worker; a
    change of ranks or workers moves whole shards, so that no item is lost or doubled. Within a
    worker the shard that has drawn least comes next.

    Each iteration is the stream from its beginning, or from where a state that was loaded before
    says. It ends when all readers have ended, which a reader that cycles never does.

    Iterate it on one thread. `begin_step` and `drain_step_metrics` may be called from another one,
    and are called in the trainer's process whatever the number of workers. Whoever prefetches on a
    thread asks for `state_dict()` on that thread, beside each item.

    Args:
        readers: what is mixed.
        seed: decides on every pick.
        shards: logical shards; at least the number of ranks, and of ranks times workers if no
            worker is to be idle. A reader with fewer items than shards is missing in some.
        rank: this process among those that share the stream; by default that of
            `torch.distributed` where it is initialised when iteration begins, else 0.
        world_size: how many these are; given together with `rank`.
        timed: whether the time spent in readers is measured.

    Attributes:
        targets: the shares and modalities that the mix should have.

    Raises:
        OptionError: a reader or a number is not allowed; names it.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        *,
        seed: int = 0,
        shards: int = 16,
        rank: int | None = None,
        world_size: int | None = None,
        timed: bool = False,
    ) -> None:
        self._readers = checked_readers(readers)
        _check_place(shards, rank, world_size)
        self._seed, self._shards, self._timed = seed, shards, timed
        self._place = None if rank is None or world_size is None else (rank, world_size)
        self.targets = Targets.of(
            {reader.name: reader.weight for reader in readers},
            {reader.name: _modality_for_reader(reader) for reader in readers},
        )
        self._meter = MixMeter(self.targets, workers=shards)
        self._loaded: MixState | None = None
        # Shared with the workers: who has yet to begin at what was loaded, and last of all whether
        # the newest iteration is in a worker. A worker's copy of this object is not ours.
        self._unread = torch.zeros(shards + 1, dtype=torch.int64)
        self._unread.share_memory_()  # type: ignore[no-untyped-call]
        self._running: list[LogicalShard] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Begin the stream, or go on from the state that was loaded.

        Raises:
            StateError: the loaded state lacks a shard that is read here.
            OptionError: there are more ranks than shards.
        """
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 0)
        owned = self._owned(number, max(1, workers))
        self._running = self._begun(owned, number, workers) if number < self._shards else []
        self._unread[-1] = int(workers > 0)
        return _stream(self._running)

    def begin_step(self, step: int) -> None:
        """Say which step the picks from now on count for; staleness is measured in steps.

        Call it before the step's batch is fetched. A `transformers.Trainer` fetches it before
        `on_step_begin`, so there the end of the step before is the place.
        """
        self._meter.begin_step(step)

    def drain_step_metrics(self) -> dict[str, float]:
        """Return this rank's raw counts since the last drain, and begin a new window.

        The keys are the same whatever happened (`formulas.raw_keys`), the values made to be added
        over ranks, but for two maxima and a minimum: see `aggregate_step_metrics`.
        """
        return self._meter.drain()

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands: the item that was yielded last is the last one seen.

        In a process that reads the stream itself: in a `DataLoader` worker those are its shards, on
        a rank without workers the shards of the rank. See `merge_states`.

        Raises:
            StateError: the stream is read in `DataLoader` workers, and this is not one.
        """
        if get_worker_info() is None and self._unread[-1]:
            raise StateError(
                "Expected to be asked where the stream is read, got asked outside of the"
                " DataLoader workers that read it",
                hint="Use torchdata's StatefulDataLoader and save its state_dict()",
            )
        if self._running is None:
            if self._loaded is not None:
                return self._loaded.plain()
            # Not begun: what a first iteration would begin with.
            iter(self)
        held = {shard.number: shard.state() for shard in self._running or []}
        return MixState(
            seed=self._seed,
            shards=self._shards,
            ranks=self._ranks()[1],
            readers=list(self.targets.weights),
            held=held,
        ).plain()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where a state says.

        A state of as many ranks is that of this rank; for another number, merge those of all.
        Readers are matched by name: new ones begin at their beginning, the places of those that
        are gone are dropped. Rank 0 says so in one line at level INFO.

        Raises:
            StateError: it is no state of a mixer, or of one with another seed or number of shards.
        """
        loaded = MixState.of(state)
        for what, saved, ours in (
            ("seed", loaded.seed, self._seed),
            ("shards", loaded.shards, self._shards),
        ):
            if saved != ours:
                raise StateError(
                    f"Expected a state with {what} {ours}, got {saved}",
                    hint=f"Make the mixer with {what}={saved}",
                )
        self._loaded, self._running = loaded, None
        worker = get_worker_info()
        self._unread[worker.id if worker else slice(None)] = 1
        if worker is None:
            self._unread[-1] = 0
        rank, ranks = self._ranks()
        line = change(loaded, list(self.targets.weights), ranks=ranks)
        if line and rank == 0 and (worker is None or worker.id == 0):
            _logger.info(line)

    @property
    def _last_picked_step(self) -> dict[str, int]:
        """The step at which each reader was last picked on this rank, -1 for never."""
        return dict(zip(self.targets.weights, self._meter._last_picked_step, strict=True))  # noqa: SLF001

    def _ranks(self) -> tuple[int, int]:
        return self._place or world_of()

    def _owned(self, worker: int, workers: int) -> list[int]:
        """Return the logical shards that are read here: dealt to ranks, then to workers."""
        rank, ranks = self._ranks()
        if ranks > self._shards:
            raise OptionError(
                f"Expected at least as many shards as the {ranks} ranks, got {self._shards}",
                hint=f"Make the mixer with shards={ranks} or more",
            )
        return list(range(self._shards))[rank::ranks][worker::workers]

    def _begun(self, owned: Sequence[int], number: int, workers: int) -> list[LogicalShard]:
        """Return shards that are about to yield their next item."""
        used = min(workers, self._shards)
        row = self._meter.row(number if workers else None, workers=used)
        row.begin(shards=len(owned))
        begun = [
            LogicalShard(
                shard,
                shards=self._shards,
                readers=self._readers,
                seed=self._seed,
                row=row,
                timed=self._timed,
            )
            for shard in owned
        ]
        if self._loaded is not None and self._unread[number]:
            self._unread[number] = 0
            _restore(begun, self._loaded)
        return begun

    def __getstate__(self) -> dict[str, Any]:
        """Return what a spawned worker needs, which has no process group to ask for its rank."""
        return {**vars(self), "_place": self._ranks(), "_running": None}


def _check_place(shards: int, rank: int | None, world_size: int | None) -> None:
    if shards < 1:
        raise OptionError(f"Expected at least one shard, got {shards}")
    if (rank is None) != (world_size is None):
        raise OptionError(
            f"Expected `rank` and `world_size` or neither, got {rank} and {world_size}"
        )
    if rank is not None and world_size is not None and not 0 <= rank < world_size:
        raise OptionError(f"Expected a rank in 0..{world_size - 1}, got {rank}")


def _restore(shards: Sequence[LogicalShard], state: MixState) -> None:
    missing = [shard.number for shard in shards if shard.number not in state.held]
    if missing:
        raise StateError(
            f"Expected a state of shards {[shard.number for shard in shards]},"
            f" got one without {missing}",
            hint="Load `merge_states([...])` of the states of all ranks",
        )
    for shard in shards:
        shard.restore(state.held[shard.number])


def _stream(shards: Sequence[LogicalShard]) -> Iterator[Any]:
    """Yield items, always of the shard that has drawn least; of equal ones, the first."""
    left = [shard for shard in shards if shard.live]
    while left:
        turn = min(shard.draws for shard in left)
        for shard in left:
            # What the shards' numbers of draws do not say is not kept: they are the whole state.
            if shard.draws == turn and (item := shard.next()) is not ENDED:
                yield item
        left = [shard for shard in left if shard.live]
