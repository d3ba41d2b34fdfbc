"""Where events go: the reference sink, the run directory, and several at once."""

from __future__ import annotations

from aegir_stream.sinks.journal import JournalSink
from aegir_stream.sinks.memory import MemorySink
from aegir_stream.sinks.tee import TeeSink

__all__ = ["JournalSink", "MemorySink", "TeeSink"]
