"""A real reinforcement-learning run, small enough for one CPU thread, recorded while it trains.

`run_demo(DemoOptions(), reporter())` does it all. The heavy libraries are imported when the run
starts, so that a terminal says at once what it waits for.
"""

from __future__ import annotations

from aegir_adapters.demo.display import PlainReporter, Reporter, RichReporter, reporter
from aegir_adapters.demo.options import DemoOptions, Recipe
from aegir_adapters.demo.run import run_demo
from aegir_adapters.demo.summary import DemoSummary

__all__ = [
    "DemoOptions",
    "DemoSummary",
    "PlainReporter",
    "Recipe",
    "Reporter",
    "RichReporter",
    "reporter",
    "run_demo",
]
