"""A real job on a few ranks that shows whether each metric raises its alarm, and only its own.

Reading order: `config` (what is run), `streams` and `model` (what is trained), `job` (one rank),
`working_set` (what a healthy ledger does), `run` (all of it), `verdict` (what the log says).
"""

from __future__ import annotations

from aegir_adapters.mixing.smoke.config import SmokeConfig, config_names, load_config
from aegir_adapters.mixing.smoke.run import run_smoke
from aegir_adapters.mixing.smoke.verdict import MetricVerdict, Verdict, judge

__all__ = [
    "MetricVerdict",
    "SmokeConfig",
    "Verdict",
    "config_names",
    "judge",
    "load_config",
    "run_smoke",
]
