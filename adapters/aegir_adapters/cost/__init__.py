"""What recording costs, before anything is recorded: bytes of log, memory, milliseconds.

Formulas only. What they need to know of a machine is a `Calibration` that somebody measured there.
"""

from __future__ import annotations

from aegir_adapters.cost.disk import DiskCost, disk_cost, record_bytes
from aegir_adapters.cost.load import CaptureLoad
from aegir_adapters.cost.memory import MemoryCost, memory_cost
from aegir_adapters.cost.timing import Calibration, Probe, TimeCost, calibrated, time_cost

__all__ = [
    "Calibration",
    "CaptureLoad",
    "DiskCost",
    "MemoryCost",
    "Probe",
    "TimeCost",
    "calibrated",
    "disk_cost",
    "memory_cost",
    "record_bytes",
    "time_cost",
]
