"""A named source of items, and what its failure is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct

from aegir_stream.errors import AegirError, OptionError

__all__ = ["Reader", "ReaderError", "checked_readers"]


class ReaderError(AegirError, RuntimeError):
    """A reader raised; the message names it, and the item at which it did."""


class Reader(Struct, frozen=True, kw_only=True):
    """One of the sources that are mixed.

    Attributes:
        name: unique among the readers of a mixer, such as `web` or `code/python`.
        weight: its share of the picks, relative to the other readers; positive and finite.
        open: `open(shard, shards)` begins a pass over the items of one of `shards` logical shards.
            Every item belongs to one shard, and each pass yields the same items in the same order:
            a resumed run counts on it. What is opened may have `skip(n)`, as the datasets of
            Hugging Face do, or be a sequence; otherwise a resumed run reads and drops what it had
            already seen. For spawned `DataLoader` workers it has to be picklable.
        modality: what `modality_max_dev` groups it under. By default the part of the name before
            the first `/`, or `text` where there is none.
        on_end: `cycle` begins the next pass after the last item, `drop` leaves the reader out
            from then on. A shard in which a reader has no item at all leaves it out either way.
    """

    name: str
    weight: float
    open: Callable[[int, int], Iterable[Any]]
    modality: str | None = None
    on_end: Literal["cycle", "drop"] = "cycle"


def _modality_for_reader(reader: Reader) -> str:
    """Return the modality of a reader: its own, else its name up to `/`, else `text`."""
    if reader.modality is not None:
        return reader.modality
    before, slash, _ = reader.name.partition("/")
    return before if slash else "text"


def checked_readers(readers: Sequence[Reader]) -> tuple[Reader, ...]:
    """Return readers that can be mixed.

    Raises:
        OptionError: there is none, two share a name, or a weight or `on_end` is not allowed.
    """
    if not readers:
        raise OptionError("Expected at least one reader, got none", hint="Pass a list of `Reader`")
    names = [reader.name for reader in readers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError(
            f"Expected a name of its own for each reader, got {twice} more than once",
            hint="Rename all but one",
        )
    for reader in readers:
        _check(reader)
    return tuple(readers)


def _check(reader: Reader) -> None:
    if not 0 < reader.weight < float("inf"):
        raise OptionError(
            f"Expected a positive finite weight for reader {reader.name!r}, got {reader.weight!r}",
            hint="Leave out readers that should not be picked",
        )
    if reader.on_end not in {"cycle", "drop"}:
        raise OptionError(
            f"Expected `cycle` or `drop` as `on_end` of reader {reader.name!r},"
            f" got {reader.on_end!r}"
        )
