"""Rows to draw: made by hand, or by hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from aegir_adapters.monitor import Row
from aegir_stream.liveness import Status
from aegir_stream.standing import RunStanding

NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.none() | st.integers(0, 2**63 - 1)
STATUSES: tuple[Status, ...] = ("active", "finished", "crashed", "stalled")

ROWS = st.builds(
    Row,
    name=st.text(min_size=1, max_size=40),
    now=st.just(1_000.0),
    standing=st.builds(
        RunStanding,
        status=st.sampled_from(STATUSES),
        iteration=COUNTS,
        total=COUNTS,
        score=NUMBERS,
        best=NUMBERS,
        curve=st.lists(st.tuples(st.integers(), st.floats(-1e9, 1e9)), max_size=80),
        cost=NUMBERS,
        calls=NUMBERS,
        started_at=NUMBERS,
        ended_at=NUMBERS,
        ending=st.none() | st.text(max_size=10),
        rate=st.none() | st.floats(0, 1e12),
        remaining_s=st.none() | st.floats(0, 1e300),
    ),
)


def row(name: str = "run", *, status: Status = "active", **known: Any) -> Row:
    """Return the row of a run about which this much is known."""
    return Row(name=name, standing=RunStanding(status=status, **known), now=1_000.0)


def full(name: str = "evolve/run-1", **known: Any) -> Row:
    """Return the row of a run about which everything is known."""
    everything: dict[str, Any] = {
        "iteration": 120,
        "total": 400,
        "score": 0.5,
        "best": 0.75,
        "curve": [(n, float(n)) for n in range(100)],
        "cost": 1.25,
        "calls": 360,
        "started_at": 400.0,
        "rate": 2.5,
        "remaining_s": 700.0,
    }
    return row(name, **(everything | known))
