from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.web.band_chart import HEIGHT, WIDTH, band_chart
from aegir_adapters.web.plane import Point
from aegir_stream.views import Band

SVG = "{http://www.w3.org/2000/svg}"
LEFT, END, TOP, FLOOR = 66.0, 350.0, 8.0, 124.0
LINE: list[Point] = [(1, 0.2), (2, 0.4), (3, 0.3)]


def drawn(points: list[Point], **options: object) -> dict[str, list[ET.Element]]:
    """Return the elements of a chart by class; it must be well-formed."""
    options.setdefault("label", "a")
    chart = ET.fromstring(band_chart(points, **options))  # type: ignore[arg-type]  # noqa: S314 - ours
    found: dict[str, list[ET.Element]] = {}
    for element in chart.iter():
        found.setdefault(element.attrib["class"], []).append(element)
    return found


def area(band: Band, points: list[Point] = LINE) -> tuple[float, float] | None:
    """Return where the healthy area begins and ends, `None` if there is none."""
    found = drawn(points, band=band).get("band")
    if found is None:
        return None
    top = float(found[0].attrib["y"])
    return top, top + float(found[0].attrib["height"])


def test_the_healthy_range_lies_behind_the_line() -> None:
    """It is drawn first, over the whole width, from end to end."""
    chart = list(ET.fromstring(band_chart(LINE, label="a", band=(0.1, 0.5))))  # noqa: S314 - ours

    assert chart[0].tag == f"{SVG}rect"
    assert (chart[0].attrib["x"], chart[0].attrib["width"]) == ("66", "284")
    found = area((0.1, 0.5))
    assert found is not None
    # A margin is left beyond its ends, so that they are seen.
    assert TOP < found[0] < found[1] < FLOOR


def test_a_range_without_a_bound_reaches_the_edge() -> None:
    """Upwards, downwards, or both."""
    below, above, all_of_it = area((None, 0.5)), area((0.1, None)), area((None, None))

    assert below is not None
    assert above is not None
    assert (below[1], above[0]) == (FLOOR, TOP)
    assert below[0] > TOP
    assert above[1] < FLOOR
    assert all_of_it == (TOP, FLOOR)
    assert area((-math.inf, math.inf)) == (TOP, FLOOR)


@pytest.mark.parametrize(
    "band", [(0.5, 0.1), (math.nan, 1.0), (0.0, math.nan), (math.inf, None), (None, -math.inf)]
)
def test_a_range_that_holds_nothing_is_not_drawn(band: Band) -> None:
    """Nothing is healthy there, so nothing is shown as if it were."""
    assert area(band) is None


def test_a_range_of_one_value_is_seen_behind_the_line() -> None:
    """Such as all readers live; the value lies in its middle."""
    points: list[Point] = [(1, 2.0), (2, 2.0)]
    found = drawn(points, band=(2.0, 2.0))

    assert found["band"][0].attrib["height"] == "4.0"
    assert float(found["newest"][0].attrib["cy"]) == float(found["band"][0].attrib["y"]) + 2


def test_without_a_range_the_line_has_the_whole_height() -> None:
    """And nothing is shaded."""
    found = drawn(LINE)

    assert "band" not in found
    heights = [float(y) for y in re.findall(r" ([\d.]+)", found["value"][0].attrib["d"])]
    assert (min(heights), max(heights)) == (TOP, FLOOR)


def test_missing_values_break_the_line() -> None:
    """Nothing is drawn where nothing is known; a single value is a dot."""
    points: list[Point] = [(0, 1.0), (1, 2.0), (2, None), (3, 1.5), (4, math.nan), (5, 4), (6, 5)]

    tags = [one.tag for one in drawn(points)["value"]]
    assert tags == [f"{SVG}path", f"{SVG}path", f"{SVG}circle"]


@pytest.mark.parametrize("points", [[], [(1, None)], [(1, math.nan), (2, math.inf)]])
def test_without_a_value_the_chart_says_so(points: list[Point]) -> None:
    """Instead of axes without a meaning."""
    assert set(drawn(points, band=(0.0, 1.0))) == {"scalar", "empty"}


def test_an_alarm_is_marked_where_it_is() -> None:
    """At the newest value."""
    assert "newest alarm" in drawn(LINE, alarm=True)
    assert "newest alarm" not in drawn(LINE)


def test_a_long_series_is_thinned() -> None:
    """A hundred thousand values are a small chart that keeps the extremes."""
    points: list[Point] = [(i, math.sin(i / 9_000) - (i == 50_001)) for i in range(100_000)]

    assert len(band_chart(points, label="a")) < 8_000
    heights = re.findall(r" ([\d.]+)", drawn(points)["value"][0].attrib["d"])
    assert {"8.0", "124.0"} <= set(heights)


numbers = st.floats() | st.sampled_from([1.7e308, -1.7e308, 5e-324, 0.0, 1.0])
series = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 50), st.none() | numbers)
)


@given(
    points=series,
    band=st.none() | st.tuples(st.none() | numbers, st.none() | numbers),
    label=st.text(),
    most=st.integers(0, 12),
    alarm=st.booleans(),
)
def test_every_chart_is_well_formed_and_inside_its_frame(
    points: list[Point], band: Band | None, label: str, most: int, *, alarm: bool
) -> None:
    """Whatever is drawn over whatever range: numbers, and none of them outside."""
    points.sort(key=lambda point: point[0])
    found = drawn(points, band=band, label=label, alarm=alarm, most=most)

    for elements in found.values():
        for element in elements:
            places = {k: v for k, v in element.attrib.items() if k not in {"class", "aria-label"}}
            assert not re.search("nan|inf", " ".join(places.values()))
            for name in ("x", "cx", "width"):
                assert 0 <= float(places.get(name, 0)) <= WIDTH
            for name in ("y", "cy", "height"):
                assert 0 <= float(places.get(name, 0)) <= HEIGHT
    for line in found.get("value", []):
        pairs = re.findall(r"([-\d.]+) ([-\d.]+)", line.get("d", ""))
        assert all(LEFT <= float(x) <= END and TOP <= float(y) <= FLOOR for x, y in pairs)
    if "band" in found:
        top, bottom = float(found["band"][0].attrib["y"]), float(found["band"][0].attrib["height"])
        assert top >= TOP
        assert top + bottom <= FLOOR + 0.1
