"""Many tests at once: which of them to believe."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["adjust"]


def adjust(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being many, in the same order.

    Calling what is adjusted to at most q a finding keeps the expected share of false ones among the
    findings under q, for independent or positively dependent tests (Benjamini & Hochberg, J. R.
    Stat. Soc. B 57, 1995, 289-300; Benjamini & Yekutieli, Ann. Stat. 29, 2001, 1165-1188). The
    adjusted value of the i-th smallest of m is the least ``m p_j / j`` over all j from i on.
    """
    adjusted = [1.0] * len(p_values)
    least = 1.0
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank in range(len(ascending), 0, -1):
        index = ascending[rank - 1]
        least = min(least, p_values[index] * len(p_values) / rank)
        adjusted[index] = least
    return adjusted
