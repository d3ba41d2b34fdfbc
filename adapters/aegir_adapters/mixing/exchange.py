"""Which rank owns a key, and the way of rows to their owners and back.

All ranks take part in every exchange, also those that have nothing to send: an `all_to_all` ends
only when everybody has joined. Rows travel as bytes, so that every dtype is carried alike (gloo of
torch 2.13 refuses the 8-bit floats as such). Uneven splits are what `all_to_all_single` takes on
gloo and on NCCL. On an accelerator the row counts are copied to the host, once for each route: the
sizes of the splits have to be known there.

Shown on gloo with two processes. The NCCL path is this same code with tensors on the device; it
could not be run where this was written.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from aegir_adapters.mixing.schedule import splitmix64
from aegir_stream.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Key", "Route", "bytes_of", "key_hash", "owner_of", "world_of"]

Key = int | str

_BITS = 64
_MASK = (1 << _BITS) - 1
_SIGN = 1 << (_BITS - 1)


def key_hash(key: Key) -> int:
    """Return a key's hash, a signed 64-bit integer that is the same in every process and release.

    Integers are mixed one to one (`splitmix64`), so no
    two of them collide. Text is hashed with BLAKE2b: among n keys some two collide with a
    probability below n^2 / 2^65, which is 3e-8 for a million.

    Raises:
        OptionError: the key is an integer of more than 64 bits.
    """
    if isinstance(key, str):
        digest = hashlib.blake2b(key.encode(), digest_size=_BITS // 8).digest()
        return int.from_bytes(digest, "little", signed=True)
    if not -_SIGN <= key < _SIGN:
        raise OptionError(
            f"Expected a key that is text or an integer of 64 bits, got `{key}`",
            hint="Name each stream by its number or by a text",
        )
    mixed = splitmix64(key)
    return mixed - (1 << _BITS) if mixed & _SIGN else mixed


def owner_of(key_hash: int, *, world_size: int) -> int:
    """Return the rank that keeps what belongs to a hash."""
    return (key_hash & _MASK) % world_size


def world_of(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """Return this process's rank and the number of ranks: 0 and 1 without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


class Route:
    """The way of this call's rows to their owners. Making one is a collective.

    Args:
        owners: rank that owns each row.
        group: the ranks; `None` for all of them.
        device: where the rows are.
    """

    def __init__(
        self,
        owners: Sequence[int],
        *,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._group = group
        self._world_size = world_of(group)[1]
        ranks = torch.tensor(owners, dtype=torch.long)
        self._order = torch.argsort(ranks, stable=True).to(device)
        outgoing = torch.bincount(ranks, minlength=self._world_size)
        even = [1] * self._world_size
        incoming = self._exchange(outgoing.to(device), even, even)
        self._outgoing: list[int] = outgoing.tolist()
        self._incoming: list[int] = incoming.tolist()

    def to_owners(self, rows: torch.Tensor) -> torch.Tensor:
        """Hand each row to its owner; return those that are ours. A collective.

        They are in the order of the ranks that sent them, and of each rank in its order.

        Args:
            rows: `[n, ...]`, of any dtype.
        """
        return self._carry(rows[self._order], self._outgoing, self._incoming)

    def back(self, rows: torch.Tensor) -> torch.Tensor:
        """Hand the answers to rows that `to_owners` returned back to who asked. A collective.

        Returns them in the order in which `to_owners` was given the rows.
        """
        arrived = self._carry(rows, self._incoming, self._outgoing)
        answers = torch.empty_like(arrived)
        answers[self._order] = arrived
        return answers

    def _carry(self, rows: torch.Tensor, send: list[int], receive: list[int]) -> torch.Tensor:
        arrived = self._exchange(bytes_of(rows), send, receive)
        return arrived.view(rows.dtype).reshape(sum(receive), *rows.shape[1:])

    def _exchange(self, rows: torch.Tensor, send: list[int], receive: list[int]) -> torch.Tensor:
        if self._world_size == 1:
            return rows
        arrived = rows.new_empty((sum(receive), *rows.shape[1:]))
        dist.all_to_all_single(arrived, rows, receive, send, group=self._group)
        return arrived


def bytes_of(rows: torch.Tensor) -> torch.Tensor:
    """Return rows `[n, ...]` as `[n, bytes of a row]`, without their gradient."""
    # No -1: without rows there would be nothing to derive the width from.
    width = math.prod(rows.shape[1:])
    return rows.detach().reshape(len(rows), width).contiguous().view(torch.uint8)
