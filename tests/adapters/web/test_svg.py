from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.svg import HEIGHT, WIDTH, Point, trajectory

SVG = "{http://www.w3.org/2000/svg}"


def drawn(points: list[Point], **options: object) -> dict[str, list[ET.Element]]:
    """Return the elements of a chart by class; it must be well-formed."""
    chart = ET.fromstring(trajectory(points, **options))  # type: ignore[arg-type]  # noqa: S314 - ours
    found: dict[str, list[ET.Element]] = {}
    for element in chart.iter():
        found.setdefault(element.attrib["class"], []).append(element)
    return found


def places(path: ET.Element) -> list[float]:
    """Return the numbers in a path or a circle."""
    text = path.get("d") or f"{path.attrib['cx']} {path.attrib['cy']}"
    assert "nan" not in text
    assert "inf" not in text
    return [float(number) for number in re.findall(r"-?[\d.]+", text)]


@pytest.mark.parametrize("points", [[], [(1, None)], [(1, math.nan), (2, math.inf)]])
def test_without_a_score_the_chart_says_so(points: list[Point]) -> None:
    """To those who hear it as well."""
    found = drawn(points)

    assert set(found) == {"trajectory", "empty"}
    assert found["trajectory"][0].attrib["aria-label"] == "score: no scores yet"


def test_a_single_score_is_a_dot_in_the_middle() -> None:
    """A line needs two."""
    found = drawn([(7, 0.5)])

    assert "M" in found["best"][0].attrib["d"]
    assert len(found["score"]) == 1
    assert found["score"][0].tag == f"{SVG}circle"
    assert [text.text for text in found["tick"]] == ["0.475", "0.525", "6", "8"]
    assert found["newest"][0].attrib["cx"] == f"{64 + (WIDTH - 76) / 2:.1f}"


def test_a_flat_series_is_a_level_line() -> None:
    """At half the height, not at an edge."""
    found = drawn([(i, 3.0) for i in range(5)])

    assert set(places(found["score"][0])[1::2]) == {102.0}


def test_missing_scores_break_the_line() -> None:
    """Nothing is drawn where nothing is known."""
    points: list[Point] = [(0, 1.0), (1, 2.0), (2, None), (3, 1.5), (4, math.nan), (5, 4), (6, 5)]
    found = drawn(points)

    assert [one.tag for one in found["score"]] == [f"{SVG}path", f"{SVG}path", f"{SVG}circle"]
    assert len(found["best"]) == 1


def test_the_best_so_far_never_falls() -> None:
    """It is drawn in steps, to the last iteration."""
    found = drawn([(0, 1.0), (1, 3.0), (2, 2.0), (3, 4.0), (4, 0.0)])

    levels = [float(y) for y in re.findall(r"V([\d.]+)", found["best"][0].attrib["d"])]
    assert levels == sorted(levels, reverse=True)
    assert found["best"][0].attrib["d"].endswith("H708.0V12.0")


@pytest.mark.parametrize("gaps", [0, 2, 3])
def test_a_long_series_is_thinned(gaps: int) -> None:
    """A hundred thousand points are a small chart, however often they are broken."""
    points: list[Point] = [
        (i, None if gaps and i % gaps == 0 else math.sin(i / 9_000) - (i == 50_001))
        for i in range(100_000)
    ]
    chart = trajectory(points)

    assert len(chart) < 100_000
    heights = [place for path in drawn(points)["score"] for place in places(path)[1::2]]
    assert len(heights) <= 1_000
    assert (min(heights), max(heights)) == (12.0, 192.0)


@pytest.mark.parametrize("label", ["<script>", '"&amp;" onload="x', "a\x00b\x1b\ufffe", "\ud800"])
def test_any_text_may_be_a_label(label: str) -> None:
    """It stays text."""
    chart = drawn([(0, 1.0), (1, 2.0)], label=label)["trajectory"][0]

    spoken = re.sub("[\x00\x1b\ufffe\ud800]", "\ufffd", label)
    assert chart.attrib["aria-label"] == f"{spoken}: 2 at iteration 1, best 2"
    assert set(chart.attrib) == {"class", "viewBox", "role", "aria-label"}


def test_large_iterations_are_written_out() -> None:
    """Not as powers of ten."""
    ticks = drawn([(0, 1.0), (1_234_567, 2.0)])["tick"]

    assert [text.text for text in ticks][2:] == ["0", "1,234,567"]


scores = st.none() | st.floats() | st.sampled_from([1.7e308, -1.7e308, 5e-324, 0.0, 1.0])
series = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 50), scores))


@given(series, st.text(), st.integers(0, 12))
def test_every_chart_is_well_formed_and_inside_its_frame(
    points: list[Point], label: str, most: int
) -> None:
    """Whatever is drawn."""
    found = drawn(sorted(points, key=lambda point: point[0]), label=label, most=most)
    numbers = [number for one in found.get("score", ()) for number in places(one)]

    assert len(numbers) <= 2 * max(4, most)
    assert all(0 <= x <= WIDTH for x in numbers[::2])
    assert all(0 <= y <= HEIGHT for y in numbers[1::2])
