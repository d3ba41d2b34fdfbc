"""Recurrent states of many streams, kept by the rank that owns each stream's key.

A stream's next chunk may be trained on any rank. Its state is where its key says: every rank asks
for the states it needs and hands back those it has made, and one rank keeps each of them. So no key
is ever resident on two ranks, and what the ledger counts is counted where it happens, once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from aegir_adapters.mixing.exchange import (
    Key,
    Route,
    bytes_of,
    key_hash,
    owner_of,
    world_of,
)
from aegir_adapters.mixing.state import StateError
from aegir_adapters.mixing.store import LEDGER_METRICS, StateStore, StoreLimits
from aegir_stream.errors import OptionError, ShapeError

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["Recalled", "StateLedger", "merge_ledger_states"]

_logger = logging.getLogger("aegir_stream")


class Recalled(NamedTuple):
    """What the ledger holds for some keys, in their order.

    Attributes:
        states: `[n, *shape]`, zeros where nothing was kept. Copies; they carry no gradient.
        found: `[n]` bool, whether there was a state.
    """

    states: torch.Tensor
    found: torch.Tensor


class StateLedger:
    """Recurrent states by key, over all ranks.

    `read` and `write` are collectives: every rank calls them equally often and in the same order,
    also with no keys at all. A rank that fails before it has joined leaves the others waiting until
    the process group's timeout, as with every collective.

    Each rank keeps the states whose keys it owns in a `StateStore`, which says what is evicted when
    and what is counted. States are copies without gradients, in one dtype, on one device; the group
    has to be able to carry tensors on that device.

    Args:
        limits: what one rank keeps.
        shape: shape of one state.
        dtype: of the states.
        device: where states are kept, handed in and handed out.
        group: the ranks; `None` for all of them. One process needs no group.

    Attributes:
        last_extra_metrics: what `drain_step_metrics` returned last; zeros before.
    """

    def __init__(
        self,
        limits: StoreLimits,
        *,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._store = StateStore(limits, shape=shape, dtype=dtype, device=device)
        self._group = group
        self.rank, self.world_size = world_of(group)
        self.last_extra_metrics: dict[str, float] = dict.fromkeys(LEDGER_METRICS, 0.0)

    @property
    def resident_keys(self) -> tuple[int, ...]:
        """Hashes of the keys kept on this rank (`key_hash`), the least recently written first."""
        return self._store.keys

    # -- the step ----------------------------------------------------------------------------------

    def begin_step(self, step: int) -> None:
        """Evict what is too old at `step`, to which later writes belong. Not a collective.

        Raises:
            OptionError: a greater step has begun already.
        """
        self._store.begin_step(step)

    def read(self, keys: Sequence[Key]) -> Recalled:
        """Return the states of keys, from wherever they are. A collective.

        Reading changes nothing, not even what is evicted next. A key that comes twice is answered
        twice.
        """
        hashes, route = self._route(keys)
        wanted = route.to_owners(hashes)
        states, found = self._store.read(wanted.tolist())
        # Whether it was found rides behind each state: one collective instead of two.
        answers = route.back(torch.cat([bytes_of(states), found[:, None].byte()], dim=1))
        # A clone: one row of a slice counts as contiguous, and cannot be seen as another dtype.
        kept = answers[:, :-1].clone(memory_format=torch.contiguous_format).view(states.dtype)
        return Recalled(kept.reshape(-1, *states.shape[1:]), answers[:, -1].bool())

    def write(
        self,
        keys: Sequence[Key],
        states: torch.Tensor,
        *,
        starts: Sequence[bool] | torch.Tensor | None = None,
    ) -> None:
        """Hand states to the ranks that own their keys. A collective.

        Of a key that is written twice in one call the last state stays: that of the highest rank,
        there that of the last row. The rows are counted one after the other in that order.

        Args:
            keys: one for each state.
            states: `[n, *shape]`; what is kept is a copy without a gradient.
            starts: which of them are the first of a new stream; `None` for none.

        Raises:
            ShapeError: the states are not of the ledger's shape, or not one for each key.
            OptionError: they are of another dtype.
        """
        self._check(keys, states)
        first = [False] * len(keys) if starts is None else [bool(start) for start in starts]
        if len(first) != len(keys):
            raise ShapeError(
                f"Expected {len(keys)} starts, one for each key, got {len(first)}",
                hint="Hand in one flag for each key, or none",
            )
        hashes, route = self._route(keys)
        flags = torch.tensor(first, dtype=torch.long, device=hashes.device)
        rows = route.to_owners(torch.stack([hashes, flags], dim=1))
        kept = route.to_owners(states)
        self._store.write(rows[:, 0].tolist(), kept, starts=rows[:, 1].bool().tolist())

    def wipe(self) -> None:
        """Forget everything on this rank; every rank calls it. Not a collective.

        What was forgotten on purpose is no eviction, and writing it again no false one.
        """
        self._store.wipe()

    def drain_step_metrics(self) -> dict[str, float]:
        """Return this rank's counts since the last call, and begin a new window.

        Always the same four keys. Raw: over ranks they are sums.
        """
        self.last_extra_metrics = self._store.drain()
        return dict(self.last_extra_metrics)

    # -- checkpoints -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's entries, for `load_state_dict` or `merge_ledger_states`.

        Not in it are the counts of the window that is open, and the keys evicted lately.
        """
        keys, written, states = self._store.entries()
        part = {
            "keys": torch.tensor(keys, dtype=torch.long),
            "written_steps": torch.tensor(written, dtype=torch.long),
            "states": states,
        }
        return {
            "world_size": self.world_size,
            "step": self._store.step,
            "parts": {self.rank: part},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, with a new window and no evictions remembered.

        With as many ranks as before each needs only its own state. With another number each needs
        those of all ranks, merged; then every entry goes to its new owner, in the order of last
        writes (entries of two ranks by step, then by rank), and one INFO line says so.

        Raises:
            StateError: the state of a rank is missing.
            ShapeError: its entries are of another shape.
            OptionError: they are of another dtype.
        """
        parts, world_size = state["parts"], state["world_size"]
        same = world_size == self.world_size and self.rank in parts
        missing = [] if same else [rank for rank in range(world_size) if rank not in parts]
        if missing:
            raise StateError(
                f"Expected the ledger states of all {world_size} ranks, got none of rank"
                f" {', '.join(map(str, missing))}",
                hint="Merge what every rank has saved with merge_ledger_states()",
            )
        for part in parts.values():
            self._check(part["keys"], part["states"])
        keys, written, states = _own(parts[self.rank]) if same else self._owned(parts)
        dropped = self._store.fill(keys, written, states, step=state["step"])
        if world_size != self.world_size:
            _logger.info(
                "The ledger of %d ranks goes on with %d: rank %d keeps %d entries, %d did not fit",
                *(world_size, self.world_size, self.rank, len(self._store), dropped),
            )

    def _owned(
        self, parts: Mapping[int, Mapping[str, torch.Tensor]]
    ) -> tuple[list[int], list[int], torch.Tensor]:
        """Return the entries of all parts that this rank owns, in the order of last writes."""
        ranks = sorted(parts)
        keys, written, states = (
            torch.cat([parts[rank][name] for rank in ranks])
            for name in ("keys", "written_steps", "states")
        )
        order = [
            row
            for row in torch.argsort(written, stable=True).tolist()
            if owner_of(int(keys[row]), world_size=self.world_size) == self.rank
        ]
        return keys[order].tolist(), written[order].tolist(), states[order]

    # -- parts -------------------------------------------------------------------------------------

    def _route(self, keys: Sequence[Key]) -> tuple[torch.Tensor, Route]:
        """Return the hashes of keys, and the way to their owners."""
        device = self._store.states.device
        hashes = [key_hash(key) for key in keys]
        owners = [owner_of(each, world_size=self.world_size) for each in hashes]
        route = Route(owners, group=self._group, device=device)
        return torch.tensor(hashes, dtype=torch.long, device=device), route

    def _check(self, keys: Sequence[Key] | torch.Tensor, states: torch.Tensor) -> None:
        """Refuse states that the ledger cannot keep as they are."""
        shape, kept = (len(keys), *self._store.states.shape[1:]), self._store.states
        if tuple(states.shape) != shape:
            raise ShapeError(
                f"Expected states of shape {shape}, got {tuple(states.shape)}",
                hint="Hand in one state for each key, in the shape that the ledger was made for",
            )
        if states.dtype != kept.dtype:
            raise OptionError(
                f"Expected states of {kept.dtype}, got {states.dtype}",
                hint="Convert them, or make the ledger for their dtype",
            )


def merge_ledger_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the saved states of several ranks as one, which any number of ranks can load.

    Raises:
        StateError: there are none, or they are of different runs: other steps or other ranks.
    """
    saved = list(states)
    about = {(state["world_size"], state["step"]) for state in saved}
    if len(about) != 1:
        raise StateError(
            f"Expected states of one step of one run, got (ranks, step) {sorted(about)}",
            hint="Merge what all ranks have saved in one checkpoint",
        )
    parts = {rank: part for state in saved for rank, part in state["parts"].items()}
    return {**saved[0], "parts": parts}


def _own(part: Mapping[str, torch.Tensor]) -> tuple[list[int], list[int], torch.Tensor]:
    return part["keys"].tolist(), part["written_steps"].tolist(), part["states"]
