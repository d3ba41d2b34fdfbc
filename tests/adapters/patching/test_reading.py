from __future__ import annotations

from typing import Any

import pytest

from adapters.patching.served import request_of
from aegir_adapters.patching.reading import Reading, engine_metrics, readings
from aegir_adapters.patching.results import Baselines

BASELINES = Baselines(pair=0, corrupt={"logprob": -5.0}, clean={"logprob": -1.0})


def reading_of(**fields: Any) -> Reading:
    """Return how the only metric of a request is read."""
    (reading,) = readings(request_of(**fields), BASELINES)
    return reading


def test_what_json_has_no_number_for_is_none() -> None:
    """And zero has no sign."""
    reading = reading_of()

    assert reading.value([float("nan")]) is None
    assert reading.value([float("-inf")]) is None
    assert str(reading.value([-0.0])) == "0.0"
    assert reading.noise({"logprob": float("nan")}) is None


def test_recovered_against_a_given_baseline_is_computed_from_what_it_is_made_of() -> None:
    """Values and noise have its unit; a baseline equal to the corrupt one leaves both undefined."""
    fields = {"metric": "recovered", "clean_baseline": -3.0}
    reading = reading_of(**fields)

    assert engine_metrics(request_of(**fields)) == ("logprob",)
    assert reading.value([-4.0]) == pytest.approx(0.5)
    assert reading.noise({"logprob": 0.5}) == pytest.approx(0.25)

    undefined = reading_of(metric="recovered", clean_baseline=-5.0)
    assert undefined.value([-4.0]) is None
    assert undefined.noise({"logprob": 0.5}) is None


def test_recovered_comes_with_the_baselines_of_what_it_is_made_of() -> None:
    """The engine computes it, and tells both."""
    assert engine_metrics(request_of(metric="recovered")) == ("recovered", "logprob")
    reading = reading_of(metric="recovered")
    assert (reading.clean, reading.corrupt) == (-1.0, -5.0)
    assert reading.value([0.25, -3.0]) == 0.25
