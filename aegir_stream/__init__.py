"""The flight recorder for post-training runs.

Reading order: `events` (the nouns), `typing` (the protocols), `recorder` (what training code
holds), `sinks.journal` and `segments` (how the run directory is written), `source` (how it is
read), `replay` and `views` (what is made of it).
"""

from __future__ import annotations

from aegir_stream.batch import Events
from aegir_stream.chunk import Chunk, Delivery
from aegir_stream.config import P5Cfg
from aegir_stream.cursor import Cursor
from aegir_stream.errors import AegirError
from aegir_stream.events import Completion, GRPOMetrics, Progress, SAELogRecord
from aegir_stream.hub import Hub
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder, RecorderStatistics
from aegir_stream.replay import Replayed, follow, read_events, replay
from aegir_stream.sinks import JournalSink, MemorySink, TeeSink
from aegir_stream.source import RunSource

__version__ = "0.1.0"

__all__ = [
    "AegirError",
    "Chunk",
    "Completion",
    "Cursor",
    "Delivery",
    "Events",
    "GRPOMetrics",
    "Hub",
    "JournalSink",
    "MemorySink",
    "P5Cfg",
    "Progress",
    "Recorder",
    "RecorderStatistics",
    "Replayed",
    "RunDirectory",
    "RunSource",
    "SAELogRecord",
    "TeeSink",
    "follow",
    "read_events",
    "replay",
]
