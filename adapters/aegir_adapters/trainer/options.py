"""What a recording can be told beside the SAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from aegir_adapters.trainer.generation import Recall
from aegir_adapters.trainer.rows import Precision
from aegir_stream.clock import SystemClock
from aegir_stream.durability import Durability
from aegir_stream.recorder import Overflow
from aegir_stream.typing import Clock, Sink

__all__ = ["RecordingOptions"]


class RecordingOptions(Struct, frozen=True, kw_only=True):
    """Options of `SidecarCallback` and `observe`.

    Attributes:
        top_k: latents recorded per token and layer; zeros among them are left out.
        record_text: write each completion's text into `completions`.
        record_token_ids: write the token ids of prompts and completions into `completions`.
        metadata: further fields of `aegir_metadata.json`, such as `run_id` or `catalog_version`.
        allow_drift: accept a resumed run that differs from what was recorded.
        precision: significant digits of SAE records.
        control_lines: `False` writes data lines only.
        sinks: where events go beside the run directory.
        queue_bytes: bound on the memory of what waits to be written.
        overflow: what to do when that bound is reached.
        durability: what is synced, and so what a loss of power may take.
        flush_every_s: under `interval`, how long after a write it is synced, at most.
        seal_timeout_s: how long a checkpoint may wait for the log, at most.
        clock: where times come from.
    """

    top_k: int = 16
    record_text: bool = False
    record_token_ids: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    allow_drift: bool = False
    precision: Precision = Precision()
    control_lines: bool = True
    sinks: tuple[Sink, ...] = ()
    queue_bytes: int = 256 << 20
    overflow: Overflow = "drop_newest"
    durability: Durability = "os"
    flush_every_s: float = 1.0
    seal_timeout_s: float = 30.0
    clock: Clock = field(default_factory=SystemClock)

    @property
    def recall(self) -> Recall:
        """What of a completion's content is written down."""
        return Recall(text=self.record_text, token_ids=self.record_token_ids)
