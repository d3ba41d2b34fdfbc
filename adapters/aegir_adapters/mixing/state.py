"""Where every logical shard stands, as plain data: saved, merged over ranks, matched on resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from aegir_stream.errors import AegirError

__all__ = ["MixState", "Place", "ShardState", "StateError", "change", "merge_states"]

_SNAPSHOT_AGE = "_steps_since_snapshot"
"""Where a `StatefulDataLoader` tells how many batches came after what its workers said."""


class StateError(AegirError, ValueError):
    """A saved state does not fit the mixer that it is loaded into, or there is none to be had."""


class Place(Struct):
    """Where a reader stands in a logical shard.

    Attributes:
        passes: passes that were completed.
        items: items read in this pass.
        ended: whether the reader is left out from now on.
    """

    passes: int = 0
    items: int = 0
    ended: bool = False


class ShardState(Struct, frozen=True, kw_only=True):
    """Where a logical shard stands.

    Attributes:
        draws: picks made; the number of the next random number.
        last: name of the reader that was picked last.
        places: by reader.
    """

    draws: int
    last: str | None
    places: dict[str, Place]


class MixState(Struct, frozen=True, kw_only=True, tag_field="stream_mixing", tag=1):
    """Where a stream, or a part of it, stands.

    Attributes:
        seed: of the mix.
        shards: logical shards of the whole stream.
        ranks: how many shared it.
        readers: names of all readers.
        held: the logical shards that this state knows, by number.
    """

    seed: int
    shards: int
    ranks: int
    readers: list[str]
    held: dict[int, ShardState]

    def plain(self) -> dict[str, Any]:
        """Return it as dicts, lists, numbers and text, which any checkpoint can hold."""
        plain: dict[str, Any] = msgspec.to_builtins(self, str_keys=True)
        return plain

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> MixState:
        """Return the state that `plain` gave.

        Raises:
            StateError: it is something else.
        """
        try:
            return msgspec.convert(plain, cls, strict=False)
        except msgspec.ValidationError as error:
            raise StateError(
                f"Expected the state of a stream mixer: {error}",
                hint="Pass what `StreamMixer.state_dict()` or `merge_states()` returned",
            ) from error


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one state that holds the shards of all given ones, for a run on other ranks.

    Args:
        states: of all ranks and workers, in any order: what `StreamMixer.state_dict()` returned, or
            `StatefulDataLoader.state_dict()`, or a checkpoint that holds either of them somewhere.

    Raises:
        StateError: there is none, they are not of one run, two differ about a shard, or a
            `StatefulDataLoader` has gone on since its workers last told where they stood.
    """
    found = [MixState.of(plain) for plain in _found(list(states))]
    if not found:
        raise StateError(
            "Expected states of a stream mixer, got none",
            hint="Pass the state of every rank",
        )
    first = found[0]
    held: dict[int, ShardState] = {}
    for state in found:
        if _run_of(state) != _run_of(first):
            raise StateError(
                "Expected states of one run, got different seeds, shards, ranks or readers:"
                f" {_run_of(first)} and {_run_of(state)}",
                hint="Merge the states that all ranks saved at the same step",
            )
        for number, shard in state.held.items():
            if held.setdefault(number, shard) != shard:
                raise StateError(
                    f"Expected one state of shard {number}, got two that differ",
                    hint="Merge the states that all ranks saved at the same step",
                )
    return msgspec.structs.replace(first, held=dict(sorted(held.items()))).plain()


def change(state: MixState, readers: Sequence[str], *, ranks: int) -> str | None:
    """Return in one line what differs between a saved stream and this one, if anything does."""
    matched = [name for name in readers if name in state.readers]
    new = [name for name in readers if name not in state.readers]
    dropped = [name for name in state.readers if name not in readers]
    if state.ranks == ranks and not new and not dropped:
        return None
    return (
        f"Stream mixing resumes on {ranks} rank(s), saved on {state.ranks}:"
        f" {len(state.held)} of {state.shards} shards found;"
        f" readers matched: {_listed(matched)};"
        f" new, from their beginning: {_listed(new)}; dropped: {_listed(dropped)}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _run_of(state: MixState) -> tuple[int, int, int, tuple[str, ...]]:
    return state.seed, state.shards, state.ranks, tuple(state.readers)


def _found(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the mixers' states that something holds, however deep."""
    if isinstance(value, Mapping):
        if "stream_mixing" in value:
            yield value
            return
        if value.get(_SNAPSHOT_AGE):
            raise StateError(
                f"Expected the newest state of each worker, got one {value[_SNAPSHOT_AGE]}"
                " batch(es) old",
                hint="Give the StatefulDataLoader snapshot_every_n_steps=1",
            )
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _found(part)
