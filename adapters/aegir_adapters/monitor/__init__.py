"""Runs in a terminal: one row for each, redrawn in place, or one plain report."""

from __future__ import annotations

from aegir_adapters.monitor.display import show
from aegir_adapters.monitor.fleet import Fleet
from aegir_adapters.monitor.glyphs import ASCII, BLOCKS, Glyphs, glyphs_for
from aegir_adapters.monitor.order import ORDERS, ordered
from aegir_adapters.monitor.report import report, report_line
from aegir_adapters.monitor.row import Row
from aegir_adapters.monitor.sparkline import sparkline

__all__ = [
    "ASCII",
    "BLOCKS",
    "ORDERS",
    "Fleet",
    "Glyphs",
    "Row",
    "glyphs_for",
    "ordered",
    "report",
    "report_line",
    "show",
    "sparkline",
]
