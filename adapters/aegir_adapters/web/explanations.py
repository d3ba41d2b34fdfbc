"""What the metrics of the data mix and of the state ledger mean, in a sentence each. Pure."""

from __future__ import annotations

__all__ = ["explanation"]

_MAXIMUM = "_max"

_KNOWN = {
    "stream_mixing/mix_tv": "How far the shares of the readers are from their targets: the part of"
    " all picks that would have to go to another reader.",
    "stream_mixing/modality_max_dev": "How far the share of the modality that is furthest off is"
    " from its target.",
    "stream_mixing/pick_entropy": "How evenly the picks are spread over the readers: 1 for equal"
    " shares, 0 for one reader alone.",
    "stream_mixing/switch_rate": "How often a pick is of another reader than the one before it.",
    "stream_mixing/staleness_max_steps": "Steps since the reader that has waited longest was"
    " picked.",
    "stream_mixing/reader_restarts": "How often a reader came to its end and began anew.",
    "stream_mixing/live_readers_min": "Readers that are not exhausted, where the fewest are left.",
    "ledger/evictions": "States that were thrown out, for others or for their age.",
    "ledger/false_evictions": "States that were thrown out while their stream still went on: the"
    " ledger is too small for the streams it serves.",
    "ledger/fresh_writes": "States written under keys for which none was kept.",
    "ledger/resident_entries": "States that the ledger holds.",
}


def explanation(name: str) -> str | None:
    """Return what a metric means; `None` where that is known only to who chose the name."""
    of_all = name.removesuffix(_MAXIMUM)
    if of_all != name and of_all in _KNOWN and of_all.startswith("ledger/"):
        return f"The highest on any rank. {_KNOWN[of_all]}"
    return _KNOWN.get(name)
