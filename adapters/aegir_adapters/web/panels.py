"""What the Data page shows: a panel for each metric, and how many are healthy. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Literal, TypeAlias

import msgspec

from aegir_adapters.web.amounts import count, number
from aegir_adapters.web.band_chart import band_chart
from aegir_adapters.web.explanations import explanation
from aegir_adapters.web.metric_table import MOST_METRICS, Metric, MetricTable
from aegir_stream.views.step_metrics import Band, is_healthy

__all__ = ["Alarm", "Group", "Panel", "Panels", "Verdict", "no_panels", "panels_of"]

Verdict: TypeAlias = Literal["healthy", "alarm"]

_WORDS: dict[Verdict | None, str] = {
    "healthy": "healthy",
    "alarm": "alarm: out of range",
    None: "",
}
_OTHERS = "Others"
_NAMELESS = "(no name)"


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One metric. Every number is finite, or null.

    Attributes:
        id: names the panel in the page; the same for as long as the run grows.
        name: the metric.
        title: its name within its group.
        step: the newest step with a value.
        value: that value; null as well where it is not finite, which `text` says.
        text: the value as it is shown.
        at: the step as it is shown.
        band: the lowest and the highest healthy value, null for no bound; null without a band.
        range: the band in words.
        verdict: `healthy` or `alarm`; null without a band.
        word: the verdict in words.
        meaning: what the metric is, in a sentence; empty where only its user knows.
        chart: its values by step, as an `<svg>` element.
    """

    id: str
    name: str
    title: str
    step: int | None
    value: float | None
    text: str
    at: str
    band: Band | None
    range: str
    verdict: Verdict | None
    word: str
    meaning: str
    chart: str


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics whose names agree up to the first slash.

    Attributes:
        id: names the group in the page.
        name: what stands before the slash; `Others` where nothing does.
        panels: its metrics, in order of name.
    """

    id: str
    name: str
    panels: list[Panel]


class Alarm(msgspec.Struct, frozen=True):
    """A metric whose newest value is outside of its band: its panel, and its name."""

    id: str
    name: str


class Panels(msgspec.Struct, frozen=True, kw_only=True):
    """All metrics of a run.

    Attributes:
        step: the highest step that was told.
        healthy: how many metrics are in their band.
        unjudged: how many have none.
        alarms: those that are out of theirs.
        groups: the panels, those without a group last.
        summary: how many are healthy, in a sentence.
        note: what else there is to say.
    """

    step: int | None
    healthy: int
    unjudged: int
    alarms: list[Alarm]
    groups: list[Group]
    summary: str
    note: str | None


def no_panels() -> Panels:
    """Return the panels of a run that told nothing yet."""
    return panels_of(MetricTable())


def panels_of(table: MetricTable, *, skipped: int = 0) -> Panels:
    """Return what there is to show of metrics.

    Args:
        table: the metrics.
        skipped: lines that could not be read.
    """
    told = [(name, metric) for name, metric in table.metrics.items() if len(metric.series)]
    panels = [_panel(name, metric) for name, metric in told]
    panels.sort(key=lambda panel: (_group(panel.name) == "", _group(panel.name), panel.name))
    healthy = sum(panel.verdict == "healthy" for panel in panels)
    alarms = [Alarm(panel.id, panel.name) for panel in panels if panel.verdict == "alarm"]
    unjudged = len(panels) - healthy - len(alarms)
    return Panels(
        step=table.step,
        healthy=healthy,
        unjudged=unjudged,
        alarms=alarms,
        groups=list(_groups(panels)),
        summary=_summary(healthy, len(alarms), unjudged),
        note=_note(table, skipped),
    )


def _panel(name: str, metric: Metric) -> Panel:
    newest = metric.series.newest
    step, value = newest or (None, None)
    band = metric.band
    verdict = _verdict(value, band)
    text, at = _text(value), f"at step {step:,}" if step is not None else "no value yet"
    said = [text, at, _range(band), _WORDS[verdict]]
    return Panel(
        id=f"metric-{metric.number}",
        name=name or _NAMELESS,
        title=name.partition("/")[2] or name or _NAMELESS,
        step=step,
        value=_finite(value),
        text=text,
        at=at,
        band=(_finite(band[0]), _finite(band[1])) if band else None,
        range=_range(band),
        verdict=verdict,
        word=_WORDS[verdict],
        meaning=explanation(name) or "",
        chart=band_chart(
            metric.series.points(),
            label=f"{name or _NAMELESS}: {', '.join(filter(None, said))}",
            band=band,
            alarm=verdict == "alarm",
        ),
    )


def _verdict(value: float | None, band: Band | None) -> Verdict | None:
    if band is None:
        return None
    return "healthy" if is_healthy(value, band) else "alarm"


def _groups(panels: Iterable[Panel]) -> Iterable[Group]:
    for name, members in groupby(panels, key=lambda panel: _group(panel.name)):
        found = list(members)
        first = min(int(panel.id.rpartition("-")[2]) for panel in found)
        yield Group(id=f"group-{first}", name=name or _OTHERS, panels=found)


def _group(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def _range(band: Band | None) -> str:
    """Return a band in words."""
    if band is None:
        return ""
    low, high = band
    if low is None and high is None:
        return "range: any number"
    if high is None:
        return f"range: at least {_text(low)}"
    if low is None:
        return f"range: at most {_text(high)}"
    return f"range: {_text(low)}" if low == high else f"range: {_text(low)} to {_text(high)}"


def _summary(healthy: int, alarms: int, unjudged: int) -> str:
    judged = healthy + alarms
    if not judged + unjudged:
        return "No metrics were written yet."
    parts = []
    if judged:
        raised = f"{count(alarms)} {'raises' if alarms == 1 else 'raise'} an alarm"
        told = f", {raised}" if alarms else ""
        parts.append(f"{count(healthy)} of {count(judged)} metrics are healthy{told}.")
    if unjudged:
        have = "metric has" if unjudged == 1 else "metrics have"
        parts.append(f"{count(unjudged)} {have} no range to be judged by.")
    return " ".join(parts)


def _note(table: MetricTable, skipped: int) -> str | None:
    notes = []
    if table.is_full:
        notes.append(f"There are more metrics; the first {MOST_METRICS} are shown.")
    if skipped:
        lines = "line cannot" if skipped == 1 else "lines cannot"
        notes.append(f"Of its file, {skipped:,} {lines} be read.")
    return " ".join(notes) or None


def _text(value: float | None) -> str:
    """Return a value as it is shown, in words where it is no number."""
    if value is None or math.isfinite(value):
        return number(value)
    return "not a number" if math.isnan(value) else f"{'-' * (value < 0)}infinity"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
