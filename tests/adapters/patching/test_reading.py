from __future__ import annotations

import pytest

from adapters.patching.served import request_of
from aegir_adapters.patching.reading import engine_metrics, read
from aegir_adapters.patching.results import Baselines

BASELINES = Baselines(pair=0, corrupt={"logprob": -5.0}, clean={"logprob": -1.0})


def test_what_json_has_no_number_for_is_none() -> None:
    """And zero has no sign."""
    reading = read(request_of(), BASELINES)

    assert reading.value(float("nan")) is None
    assert reading.value(float("-inf")) is None
    assert str(reading.value(-0.0)) == "0.0"
    assert reading.noise({"logprob": float("nan")}) is None


def test_recovered_against_a_given_baseline_is_computed_from_what_it_is_made_of() -> None:
    """Values and noise have its unit; a baseline equal to the corrupt one leaves both undefined."""
    request = request_of(metric="recovered", clean_baseline=-3.0)
    reading = read(request, BASELINES)

    assert engine_metrics(request) == ("logprob",)
    assert reading.value(-4.0) == pytest.approx(0.5)
    assert reading.noise({"logprob": 0.5}) == pytest.approx(0.25)

    undefined = read(request_of(metric="recovered", clean_baseline=-5.0), BASELINES)
    assert undefined.value(-4.0) is None
    assert undefined.noise({"logprob": 0.5}) is None


def test_recovered_comes_with_the_baselines_of_what_it_is_made_of() -> None:
    """The engine computes it, and tells both."""
    request = request_of(metric="recovered")

    assert engine_metrics(request) == ("recovered", "logprob")
    reading = read(request, BASELINES)
    assert (reading.clean, reading.corrupt) == (-1.0, -5.0)
    assert reading.value(0.25) == 0.25
