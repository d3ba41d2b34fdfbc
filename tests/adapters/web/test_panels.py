from __future__ import annotations

import json
import math
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.explanations import explanation
from aegir_adapters.web.metric_table import LONGEST_NAME, MOST_METRICS, MetricTable
from aegir_adapters.web.panels import Panel, Panels, panels_of
from aegir_stream.events import StepMetrics
from aegir_stream.views import Band, StepMetricsView

Bands = dict[str, Band]
HOSTILE = '<script>alert("1")</script>'


def step_of(step: int, metrics: dict[str, float | None], bands: Bands | None = None) -> StepMetrics:
    """Return the metrics of a step."""
    return StepMetrics(step=step, ts=0.0, metrics=metrics, bands=bands or {})


def shown(*events: StepMetrics, skipped: int = 0) -> Panels:
    """Return the panels of what was told."""
    table = MetricTable()
    table.take(events)
    return panels_of(table, skipped=skipped)


def by_name(panels: Panels) -> dict[str, Panel]:
    """Return the panels by the name of their metric."""
    return {panel.name: panel for group in panels.groups for panel in group.panels}


def test_metrics_are_grouped_by_what_stands_before_the_slash() -> None:
    """Groups and metrics are in order of name; those without a group come last."""
    names = ["z", "ledger/b", "ledger/a", "mine", "/x", "a/b/c", "empty/", ""]
    panels = shown(step_of(1, dict.fromkeys(names, 1.0)))

    found = [(group.name, [panel.title for panel in group.panels]) for group in panels.groups]
    assert found == [
        ("a", ["b/c"]),
        ("empty", ["empty/"]),
        ("ledger", ["a", "b"]),
        ("Others", ["(no name)", "x", "mine", "z"]),
    ]


def test_the_newest_value_is_judged_by_the_newest_band() -> None:
    """An alarm says so in words, and the summary counts it."""
    band: Bands = {"a": (0.0, 1.0), "b": (0.0, 1.0)}
    panels = shown(
        step_of(1, {"a": 0.5, "b": 2.0, "c": 9.0}, band),
        step_of(2, {"a": 1.5, "b": 0.5, "c": None}),
    )

    a, b, c = (by_name(panels)[name] for name in "abc")
    assert (a.verdict, a.word, a.text, a.at) == (
        "alarm",
        "alarm: out of range",
        "1.5",
        "at step 2",
    )
    assert (b.verdict, b.word, b.range) == ("healthy", "healthy", "range: 0 to 1")
    assert (c.verdict, c.word, c.range, c.text, c.at) == (None, "", "", "9", "at step 1")
    assert (panels.healthy, panels.unjudged, panels.step) == (1, 1, 2)
    assert [(alarm.id, alarm.name) for alarm in panels.alarms] == [(a.id, "a")]
    assert panels.summary == (
        "1 of 2 metrics are healthy, 1 raises an alarm. 1 metric has no range to be judged by."
    )
    assert "alarm" in a.chart
    assert "alarm" not in b.chart


@pytest.mark.parametrize(
    ("band", "words"),
    [
        ((0.0, None), "range: at least 0"),
        ((None, 2.5), "range: at most 2.5"),
        ((3.0, 3.0), "range: 3"),
        ((None, None), "range: any number"),
        ((-math.inf, 1.0), "range: -infinity to 1"),
    ],
)
def test_a_range_is_told_in_words(band: Band, words: str) -> None:
    """Colour and area are not all there is."""
    assert by_name(shown(step_of(1, {"a": 1.0}, {"a": band})))["a"].range == words


def test_what_is_no_number_is_told_in_words() -> None:
    """And is null for programs."""
    panel = by_name(shown(step_of(1, {"a": math.nan}, {"a": (0.0, None)})))["a"]

    assert (panel.verdict, panel.value, panel.text) == ("alarm", None, "not a number")


def test_a_metric_without_values_is_healthy_and_has_a_panel() -> None:
    """One that has only a band has none yet."""
    panels = shown(step_of(1, {"a": None}, {"a": (0.0, 1.0), "b": (0.0, 1.0)}))

    assert set(by_name(panels)) == {"a"}
    assert by_name(panels)["a"].verdict == "healthy"
    assert "no values yet" in by_name(panels)["a"].chart


def test_a_panel_keeps_its_name_in_the_page() -> None:
    """Whatever metrics come later, before it in order or in its group."""
    events = [step_of(1, {"m/b": 1.0}), step_of(2, {"a": 1.0, "m/a": 1.0})]
    before, after = shown(events[0]), shown(*events)

    assert by_name(before)["m/b"].id == by_name(after)["m/b"].id
    assert before.groups[0].id == after.groups[0].id
    ids = [panel.id for panel in by_name(after).values()] + [group.id for group in after.groups]
    assert len(set(ids)) == len(ids)


def test_nothing_told_is_said() -> None:
    """Instead of a page without anything."""
    panels = shown()

    assert panels.groups == []
    assert panels.summary == "No metrics were written yet."


def test_metrics_are_bounded() -> None:
    """More names than anyone can look at, and names longer than anyone can read, are cut."""
    table = MetricTable()
    table.take([step_of(i, {f"m{i}": 1.0, "m0": 2.0}, {f"b{i}": (0.0, 1.0)}) for i in range(999)])
    table.take([step_of(2**70, {"m0": 3.0})])
    panels = panels_of(table, skipped=2)

    assert len(table.metrics) == MOST_METRICS
    assert by_name(panels)["m0"].step == panels.step == 998
    assert panels.note == (
        "There are more metrics; the first 256 are shown. Of its file, 2 lines cannot be read."
    )
    long = by_name(shown(step_of(1, {"x" * 10**6: 1.0, "x" * 10**6 + "y": 2.0})))
    assert [(len(name), panel.value) for name, panel in long.items()] == [(LONGEST_NAME, 2.0)]


def test_known_metrics_are_explained() -> None:
    """In a sentence; what a user's name means only the user knows."""
    known = [
        *(
            f"stream_mixing/{name}"
            for name in (
                "mix_tv",
                "modality_max_dev",
                "pick_entropy",
                "switch_rate",
                "staleness_max_steps",
                "reader_restarts",
                "live_readers_min",
            )
        ),
        *(
            f"ledger/{name}{sibling}"
            for name in ("evictions", "false_evictions", "fresh_writes", "resident_entries")
            for sibling in ("", "_max")
        ),
    ]
    sentences = [explanation(name) for name in known]

    assert all(one and one.endswith(".") for one in sentences)
    assert len(set(sentences)) == 15
    assert (explanation("loss"), explanation("_max"), explanation("loss_max")) == (None,) * 3
    assert explanation("stream_mixing/mix_tv_max") is None


names = st.sampled_from(["stream_mixing/mix_tv", "ledger/evictions", "", "/", HOSTILE]) | st.text()
numbers = st.none() | st.floats()
events = st.lists(
    st.builds(
        StepMetrics,
        step=st.integers(0, 9),
        ts=st.just(0.0),
        metrics=st.dictionaries(names, numbers, max_size=5),
        bands=st.dictionaries(names, st.tuples(numbers, numbers), max_size=5),
    )
)


@given(events)
def test_any_metrics_are_told_as_json_with_well_formed_charts(told: list[StepMetrics]) -> None:
    """The same are healthy, and the same raise an alarm, as in the view of the core."""
    panels = shown(*told)
    body = json.loads(msgspec.json.encode(panels), parse_constant=pytest.fail)

    view = StepMetricsView()
    state = view.fold(view.initial(), told)
    assert {alarm.name or "(no name)" for alarm in panels.alarms} == {
        name or "(no name)" for name in state.alarms
    }
    assert set(by_name(panels)) == {name or "(no name)" for name in state.values}
    for group in body["groups"]:
        for panel in group["panels"]:
            ET.fromstring(panel["chart"])  # noqa: S314 - ours
