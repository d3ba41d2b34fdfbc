"""The one configuration object that producer and server share.

An override of a name or of the directory moves both ends, because both read this object.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = [
    "DEFAULT_GATEWAY_URL",
    "DEFAULT_PORT",
    "GATEWAY_URL_VARIABLE",
    "OUTPUT_DIR_VARIABLE",
    "PORT_VARIABLE",
    "P5Cfg",
]

OUTPUT_DIR_VARIABLE = "AEGIR_P5_OUTPUT_DIR"
"""Environment variable that overrides `P5Cfg.output_dir`."""

DEFAULT_PORT = 8091
"""Where the gateway listens."""

PORT_VARIABLE = "AEGIR_GATEWAY_PORT"
"""Environment variable that overrides it."""

DEFAULT_GATEWAY_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
"""Where the pages of another checkout find the gateway."""

GATEWAY_URL_VARIABLE = "AEGIR_GATEWAY_URL"
"""Environment variable that overrides it."""


class P5Cfg(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run lies and what its files are called.

    Attributes:
        output_dir: the run directory, which is the trainer's `output_dir`.
        sae_log_filename: snapshot inside each `checkpoint-N`.
        sae_live_log_filename: live tail in the run directory.
        metadata_filename: sidecar inside each `checkpoint-N`.
        grpo_metrics_filename: one line per optimizer step.
        sae_live_spill_every_n_steps: how many steps' records are appended together.
    """

    output_dir: str = "/raid/checkpoints/p5"
    sae_log_filename: str = "sae_features.jsonl"
    sae_live_log_filename: str = "sae_features.live.jsonl"
    metadata_filename: str = "aegir_metadata.json"
    grpo_metrics_filename: str = "grpo_metrics.jsonl"
    sae_live_spill_every_n_steps: int = 1

    def overridden_by(self, environment: Mapping[str, str]) -> P5Cfg:
        """Return this configuration with the variables of `environment` applied.

        An empty value counts as unset.
        """
        output_dir = environment.get(OUTPUT_DIR_VARIABLE)
        return msgspec.structs.replace(self, output_dir=output_dir) if output_dir else self
