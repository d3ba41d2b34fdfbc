from __future__ import annotations

import pytest

from aegir_stream.liveness import Evidence, Status, judge


@pytest.mark.parametrize(
    ("evidence", "status"),
    [
        (Evidence(ended=True, held=True, alive=True, quiet_s=0.0), "finished"),
        (Evidence(held=True, alive=False, quiet_s=9e9), "active"),
        (Evidence(alive=True), "active"),
        (Evidence(alive=False, quiet_s=0.0), "crashed"),
        (Evidence(quiet_s=599.0), "active"),
        (Evidence(quiet_s=601.0), "stalled"),
        (Evidence(quiet_s=2_999.0, slowest_gap_s=1_000.0), "active"),
        (Evidence(quiet_s=3_001.0, slowest_gap_s=1_000.0), "stalled"),
        (Evidence(), "stalled"),
        (Evidence(quiet_s=-50.0), "active"),
    ],
)
def test_the_strongest_evidence_decides(evidence: Evidence, status: Status) -> None:
    """An end marker, then a lease or a live process, then a proof of death, then freshness."""
    assert judge(evidence) == status
