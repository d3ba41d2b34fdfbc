"""The public test kit.

A clock that stands still, records to test with, one contract for all sinks, and a simulated machine
whose disk fails, fills up and loses power when a test says so.
"""

from aegir_stream.testing.clock import ManualClock
from aegir_stream.testing.contract import SinkContract
from aegir_stream.testing.events import make_append, make_record, records
from aegir_stream.testing.faults import NO_LINKS, NO_LOCKS, Call, Fault
from aegir_stream.testing.machine import Attributes, SimulatedMachine
from aegir_stream.testing.process import Killed, SimulatedSystem

__all__ = [
    "NO_LINKS",
    "NO_LOCKS",
    "Attributes",
    "Call",
    "Fault",
    "Killed",
    "ManualClock",
    "SimulatedMachine",
    "SimulatedSystem",
    "SinkContract",
    "make_append",
    "make_record",
    "records",
]
