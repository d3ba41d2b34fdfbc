"""The colours of tokens: how deep each is, and how they look. Pure."""

from __future__ import annotations

__all__ = ["LEVELS", "STYLE", "shade_of"]

LEVELS = 10
"""How many shades there are above none."""

_LIGHT = ((255, 255, 255), (244, 150, 92))
_DARK = ((27, 33, 43), (150, 62, 10))
"""Grounds on which the text of a page is legible in all shades."""


def shade_of(value: float | None, bottom: float, top: float) -> str:
    """Return the class of a value's colour, which is the deeper the nearer it is to the top.

    Args:
        value: the value; a token without one has no colour.
        bottom: where colours begin; lower values have none.
        top: the highest value.
    """
    if value is None or value < bottom or value == top == 0:
        return "t0"
    along = (value - bottom) / (top - bottom) if top > bottom else 1.0
    return f"t{max(1, round(LEVELS * along))}"


def _style() -> str:
    def shades(ends: tuple[tuple[int, int, int], tuple[int, int, int]]) -> str:
        low, high = ends
        return "".join(
            f".t{step}{{background:rgb("
            + ",".join(
                str(round(a + (b - a) * step / LEVELS)) for a, b in zip(low, high, strict=True)
            )
            + ")}"
            for step in range(1, LEVELS + 1)
        )

    return f"{shades(_LIGHT)}@media(prefers-color-scheme:dark){{{shades(_DARK)}}}"


STYLE = _style()
"""The colours of the tokens."""
