"""What needs gigabytes: the large forms of the tests of bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from aegir_stream.layout import RunDirectory
from core.resident import Measured
from soak.oracle import SoakError
from soak.processes import Process
from soak.sockets import stall
from soak.weights import heavy_run

SEGMENT_MIB = 2048
CROWDED_MIB = 200
SERVED_MIB = 32
CROWD = 200
BOUND_MIB = 100.0


def large_forms(root: Path) -> Iterator[str]:
    """Yield what was found, one line each.

    Raises:
        SoakError: something was not bounded.
    """
    run, records = heavy_run(root / "segment", mib=SEGMENT_MIB)
    for what in ("follow", "replay"):
        yield f"{what} of 2 GiB: {_measured(what, run, records)}"
    shutil.rmtree(run.root)
    run, records = heavy_run(root / "crowded", mib=CROWDED_MIB)
    yield f"hub with {CROWD} slow subscribers: {_measured('crowd', run, records, CROWD)}"
    shutil.rmtree(run.root)
    yield str(stall(root / "served", clients=CROWD, mib=SERVED_MIB))


def _measured(what: str, run: RunDirectory, records: int, number: int = 0) -> str:
    reader = Process("core.resident", what, run.root, str(number), kind=Measured)
    try:
        said, code = reader.end(patience_s=1800)
    finally:
        reader.close()
    if code or not said:
        raise SoakError(f"{what} ended with {code}")
    (found,) = said
    if found.records != (records, records):
        raise SoakError(f"{what} saw {found.records} records, of {records}")
    if found.peak_mib > BOUND_MIB:
        raise SoakError(f"{what} needed {found.peak_mib:.0f} MiB, of at most {BOUND_MIB:.0f}")
    return (
        f"{found.peak_mib:.0f} MiB at most, {found.megabytes / found.seconds:.0f} MB/s, "
        f"{found.seconds:.0f} s, {found.threads} threads"
    )
