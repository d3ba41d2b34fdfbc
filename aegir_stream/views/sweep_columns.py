"""The columns of a patch sweep's grids: positions, or groups of them, and what stands there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from aegir_stream.sweep_events import SweepPair, SweepStarted

__all__ = ["DISAGREEING", "SweepColumn", "columns_of"]

T = TypeVar("T")

DISAGREEING = "…"
"""The text of a column whose pairs have different tokens there."""

_BETWEEN = " "


class SweepColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of every grid.

    Attributes:
        position: what its cells have as their position.
        positions: what is patched, in the prompt of the first pair; several if it is a group.
        token: the text there; empty if the sweep does not say, `DISAGREEING` where its pairs do.
        clean_token: likewise at its counterpart in the clean prompt; `None` without one.
        differs: whether the clean prompt of any pair has another token there.
        name: of a group; `None` where the column is a position.
    """

    position: int
    positions: tuple[int, ...]
    token: str
    clean_token: str | None = None
    differs: bool = False
    name: str | None = None


def columns_of(started: SweepStarted) -> list[SweepColumn]:
    """Return the columns of a sweep, whatever its first line says of them."""
    pairs = started.pairs or (_only_pair(started),)
    return [
        _column(pairs, index, position, _at(started.columns, index))
        for index, position in enumerate(started.positions)
    ]


def _only_pair(started: SweepStarted) -> SweepPair:
    """Return what the top of a sweep says of its prompts, as a pair."""
    return SweepPair(
        tokens=started.tokens,
        positions=tuple((position,) for position in started.positions),
        clean_tokens=started.clean_tokens,
        clean_positions=tuple((position,) for position in started.clean_positions or ()),
    )


def _column(pairs: Sequence[SweepPair], index: int, position: int, name: str | None) -> SweepColumn:
    tokens = [_text(pair.tokens, _at(pair.positions, index)) for pair in pairs]
    counterparts = [
        _text(pair.clean_tokens, _at(pair.clean_positions or (), index)) for pair in pairs
    ]
    return SweepColumn(
        position=position,
        positions=_at(pairs[0].positions, index) or (),
        token=_agreed(tokens) or "",
        clean_token=_agreed(counterparts),
        differs=any(
            clean is not None and clean != token
            for token, clean in zip(tokens, counterparts, strict=True)
        ),
        name=name,
    )


def _text(tokens: Sequence[str] | None, positions: Sequence[int] | None) -> str | None:
    """Return the tokens at some positions; `None` if one of them is not there."""
    found = [_at(tokens or (), position) for position in positions or ()]
    known = [token for token in found if token is not None]
    return _BETWEEN.join(known) if known and len(known) == len(found) else None


def _agreed(texts: Sequence[str | None]) -> str | None:
    """Return what all of them are."""
    if all(text == texts[0] for text in texts):
        return texts[0]
    return DISAGREEING


def _at(things: Sequence[T], place: int | None) -> T | None:
    return things[place] if place is not None and 0 <= place < len(things) else None
