"""The columns of a sweep's grids: what each is called, and what it stands for in each pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from aegir_adapters.patching.results import Position

__all__ = ["Columns", "columns_of"]

Rows = tuple[int, ...]
"""Positions of a prompt that are patched together."""


class Columns(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of a sweep's grids.

    Attributes:
        names: what they are called; `None` where each is a position.
        labels: how cells refer to them: by the first pair's position, or by the index of the name.
        rows: for each pair and column, what is patched.
    """

    names: tuple[str, ...] | None
    labels: tuple[int, ...]
    rows: tuple[tuple[Rows, ...], ...]

    def positions(self, pair: int) -> tuple[Position, ...]:
        """Return what the engine is to sweep in a pair: columns that are equal there once."""
        return tuple(map(_position, dict.fromkeys(self.rows[pair])))

    def repeated(self, pair: int) -> int:
        """Return how many columns of a pair equal another one."""
        return len(self.labels) - len(set(self.rows[pair]))

    def labelled(self) -> list[dict[Position, tuple[int, ...]]]:
        """Return, for each pair, the columns that a swept position stands for."""
        return [self._labelled(rows) for rows in self.rows]

    def name(self, label: int) -> str | None:
        """Return the name of a column; `None` where it has none."""
        return None if self.names is None else self.names[label]

    def _labelled(self, rows: Sequence[Rows]) -> dict[Position, tuple[int, ...]]:
        found: dict[Position, tuple[int, ...]] = defaultdict(tuple)
        for label, own in zip(self.labels, rows, strict=True):
            found[_position(own)] += (label,)
        return dict(found)


def columns_of(names: Sequence[str] | None, rows: Sequence[Sequence[Rows]]) -> Columns:
    """Return the columns that have something to patch in every pair.

    Args:
        names: of all columns, or none.
        rows: for each pair and column, what is aligned.
    """
    kept = [index for index, column in enumerate(zip(*rows, strict=True)) if all(column)]
    swept = tuple(tuple(own[index] for index in kept) for own in rows)
    if names is None:
        return Columns(names=None, labels=tuple(own[0] for own in swept[0]), rows=swept)
    return Columns(
        names=tuple(names[index] for index in kept), labels=tuple(range(len(kept))), rows=swept
    )


def _position(rows: Rows) -> Position:
    return rows[0] if len(rows) == 1 else rows
