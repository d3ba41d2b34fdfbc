"""Which latents begin to fire, and which stop: the active sets of two windows compared."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from aegir_stream.views.firing import FiringState, Window

__all__ = ["Turnover", "active_latents", "turnover"]


class Turnover(msgspec.Struct, frozen=True, kw_only=True):
    """One window of a layer, compared with the window before it and with the first.

    Attributes:
        layer: hooked decoder layer.
        first_step: first step of the window.
        last_step: its last step; `None` where one window holds all.
        tokens: recorded tokens; a window with few has few active latents for that alone.
        active: latents that are active in it.
        emerged: those that were not in the window before, ascending.
        vanished: those of the window before that are not any more, ascending.
        jaccard: overlap with the window before, ``|A and B| / |A or B|``; `None` for the first.
        turnover: ``(emerged + vanished) / (|A| + |B|)``, which is 1 less Dice's coefficient; `None`
            for the first.
        jaccard_first: overlap with the first window.
    """

    layer: int
    first_step: int
    last_step: int | None
    tokens: int
    active: int
    emerged: tuple[int, ...]
    vanished: tuple[int, ...]
    jaccard: float | None
    turnover: float | None
    jaccard_first: float


def turnover(state: FiringState, layer: int, *, least_rate: float = 0.0) -> Iterator[Turnover]:
    """Yield how the active latents of a layer change from window to window.

    Windows without a record are passed over: nothing is known of them. A rare latent comes and goes
    by chance, the more so the fewer tokens a window has; `least_rate` leaves such latents out.

    Args:
        state: of a `FiringView` with windows.
        layer: hooked decoder layer.
        least_rate: share of the tokens of a window on which an active latent fires at least.
    """
    first: frozenset[int] | None = None
    before: frozenset[int] | None = None
    for number, window in sorted(state.layers.get(layer, {}).items()):
        now = active_latents(window, least_rate=least_rate)
        first = now if first is None else first
        since = now if before is None else before
        first_step, last_step = state.steps(number)
        yield Turnover(
            layer=layer,
            first_step=first_step,
            last_step=last_step,
            tokens=window.tokens,
            active=len(now),
            emerged=tuple(sorted(now - since)),
            vanished=tuple(sorted(since - now)),
            jaccard=None if before is None else _jaccard(now, before),
            turnover=None if before is None else _turnover(now, before),
            jaccard_first=_jaccard(now, first),
        )
        before = now


def active_latents(window: Window, *, least_rate: float = 0.0) -> frozenset[int]:
    """Return the latents that fire in a window, on a share `least_rate` of its tokens at least."""
    least = least_rate * window.tokens
    return frozenset(k for k, firing in window.latents.items() if firing.tokens >= least)


def _jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    """Return the overlap of two sets; that of two empty ones is 1."""
    return len(left & right) / len(left | right) if left or right else 1.0


def _turnover(left: frozenset[int], right: frozenset[int]) -> float:
    both = len(left) + len(right)
    return len(left ^ right) / both if both else 0.0
