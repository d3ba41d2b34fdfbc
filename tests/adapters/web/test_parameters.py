from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams

from aegir_adapters.web.parameters import ParameterError, StreamRequest, parse_stream_request
from aegir_stream.selection import Selection


def test_no_parameters_ask_for_everything_since_the_last_checkpoint() -> None:
    """Without parameters a reader gets the live tail from its start, unfiltered."""
    assert parse_stream_request(QueryParams("")) == StreamRequest(start="checkpoint")


def test_all_parameters_are_understood() -> None:
    """Each parameter ends up where it belongs; numbers may be listed or repeated."""
    query = QueryParams(
        "from=start&layer=0,20&layer=4&rank=1&feature=7&step_min=3&step_max=9&every=10&batch=1"
        "&pass=loss,eval&pass=decode"
    )

    assert parse_stream_request(query) == StreamRequest(
        start="start",
        batch=True,
        selection=Selection(
            layers=frozenset({0, 4, 20}),
            ranks=frozenset({1}),
            features=frozenset({7}),
            passes=frozenset({"loss", "eval", "decode"}),
            step_min=3,
            step_max=9,
            every=10,
        ),
    )


def test_the_header_of_a_reconnect_wins_over_the_first_address() -> None:
    """A browser repeats `?cursor=` for ever and adds how far it has come since."""
    request = parse_stream_request(QueryParams("cursor=old"), last_event_id="new")

    assert request.cursor == "new"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("from=yesterday", "from"),
        ("layer=top", "layer"),
        ("layer=", "layer"),
        ("layer=-1", "layer"),
        ("layer=" + ",".join("1" * 65), "layer"),
        ("rank=0x1", "rank"),
        ("feature=1.5", "feature"),
        ("pass=forward", "pass"),
        ("step_min=1&step_min=2", "step_min"),
        ("step_min=9&step_max=3", "step_max"),
        ("step_max=" + "9" * 5000, "step_max"),
        ("every=0", "every"),
        ("batch=yes", "batch"),
        ("cursor=" + "x" * 2000, "cursor"),
        ("layers=3", "layers"),
    ],
)
def test_a_bad_parameter_is_named(query: str, parameter: str) -> None:
    """The error names the parameter, its value and what it may be; long values are shortened."""
    with pytest.raises(ParameterError, match=f"`{parameter}`") as caught:
        parse_stream_request(QueryParams(query))

    assert caught.value.parameter == parameter
    assert caught.value.allowed
    assert len(caught.value.value) < 100
