from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.monitor import figures

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.5, "0.5000"),
        (-0.00012, "-0.0001"),
        (0.00001234, "1.23e-5"),
        (9.9999, "10.000"),
        (36, "36.00"),
        (1234.5, "1234"),
        (1e300, "1.00e300"),
        (float("nan"), "nan"),
    ],
)
def test_figures_have_the_digits_that_count(value: float, text: str) -> None:
    """A score is shown with four digits, very small and very large ones with an exponent."""
    assert figures.figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999_999, "999999"),
        (1_000_000, "1M"),
        (1_234_567, "1.23M"),
        (999_999_999, "1G"),
        (2**63 - 1, "9.22E"),
        (-12, "-12"),
    ],
)
def test_counts_are_exact_below_a_million(value: int, text: str) -> None:
    """A count is written out as long as that is short."""
    assert figures.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0.4, "0s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3_599.7, "1h 00m"),
        (7_620, "2h 07m"),
        (86_400 * 12 + 3_600 * 4, "12d 4h"),
        (86_400 * 115.5, "115d"),
        (1e300, ">999d"),
        (float("inf"), ">999d"),
    ],
)
def test_durations_are_in_two_units(seconds: float, text: str) -> None:
    """A time span is told in its two largest units."""
    assert figures.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(200, "3m20s/it"), (2.54, "2.5s/it"), (0.7, "86/min"), (0.001, "1000/s"), (0.0, "-")],
)
def test_rates_read_well(seconds: float, text: str) -> None:
    """Slow iterations are told by their length, fast ones by how many there are."""
    assert figures.rate(seconds) == text


@given(NUMBERS)
def test_whatever_the_number_its_text_is_short(value: float) -> None:
    """No number breaks a column."""
    assert len(figures.figure(value)) <= 10
    assert len(figures.count(value)) <= 11
    if value == value:  # noqa: PLR0124 - what is no number is no time either
        assert len(figures.duration(value)) <= 7
        assert len(figures.rate(value)) <= 11
