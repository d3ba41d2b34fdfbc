from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.errors import MalformedEventError
from aegir_stream.events import (
    Batch,
    Completion,
    GRPOMetrics,
    Open,
    Progress,
    SAEHealth,
    SAELogRecord,
    Seal,
)
from aegir_stream.testing import make_record, records

SIX_FIELDS = [
    "step",
    "token_index",
    "layer_index",
    "top_feature_indices",
    "top_feature_activations",
    "reconstruction_loss",
]
any_float = st.floats()


def same(first: object, second: object) -> bool:
    """Compare events, a NaN being the same as a NaN."""
    return repr(first) == repr(second)


@given(records())
def test_record_survives_the_round_trip(record: SAELogRecord) -> None:
    """Decoding a line gives the record that was encoded, NaN and the infinities included."""
    assert same(record, codec.decode(codec.encode(record), SAELogRecord))


@given(any_float, any_float, st.text())
def test_completion_survives_the_round_trip(reward: float, part: float, text: str) -> None:
    """A completion keeps its rewards, its abstentions and any text a model can write."""
    completion = Completion(
        step=1,
        completion=0,
        rank=0,
        group=0,
        rewards={"verifier": part, "NaN": None},
        reward=reward,
        advantage=-0.5,
        length=3,
        terminated=True,
        text=text,
    )

    assert same(completion, codec.decode(codec.encode(completion), Completion))


@given(any_float, any_float)
def test_metrics_survive_the_round_trip(loss: float, fvu: float) -> None:
    """Step metrics keep their numbers, those of the nested health reports too."""
    health = SAEHealth(layer_index=0, fvu=0.5, l0=16.0, dead_share=0.0, norm_drift=0.0)
    metrics = GRPOMetrics(step=1, ts=2.0, loss=loss, reward_mean=fvu, health=(health,))

    assert same(metrics, codec.decode(codec.encode(metrics), GRPOMetrics))


@given(st.floats(allow_nan=True), st.text())
def test_a_string_that_spells_a_float_stays_a_string(score: float, text: str) -> None:
    """Only fields that hold floats are read as floats."""
    progress = Progress(iter=1, score=score, program_id="NaN", model=text)

    assert same(progress, codec.decode(codec.encode(progress), Progress))


@pytest.mark.parametrize("health", [math.nan, math.inf, -math.inf])
def test_nested_non_finite_numbers_survive(health: float) -> None:
    """A health report may hold a number that JSON has no spelling for."""
    report = SAEHealth(layer_index=0, fvu=health, l0=1.0, dead_share=0.0, norm_drift=health)
    metrics = GRPOMetrics(step=1, ts=1.0, health=(report,))

    assert same(metrics, codec.decode(codec.encode(metrics), GRPOMetrics))


@given(st.text(alphabet="a\n\r\u2028\u2029\u0085\x00é"))
def test_a_line_is_one_line_for_every_tool(text: str) -> None:
    r"""An encoded event holds its final ``\n`` and nothing else that splits lines."""
    line = codec.encode(Progress(iter=1, program_id=text))

    assert len(line.decode().splitlines()) == 1
    assert line.endswith(b"\n")
    assert json.loads(line)["program_id"] == text


def test_the_six_fields_come_first_and_in_order() -> None:
    """A data line begins with the fields that every reader of this format knows."""
    assert list(json.loads(codec.encode(make_record(completion=4)))) == [*SIX_FIELDS, "completion"]
    assert list(json.loads(codec.encode(make_record(completion=None)))) == SIX_FIELDS


def test_non_finite_numbers_are_spelled_as_strings() -> None:
    """NaN and the infinities stand as strings in valid JSON."""
    record = msgspec.structs.replace(
        make_record(), top_feature_activations=(math.inf, -math.inf), reconstruction_loss=math.nan
    )
    line = json.loads(codec.encode(record))

    assert line["top_feature_activations"] == ["Infinity", "-Infinity"]
    assert line["reconstruction_loss"] == "NaN"


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[1]", b'{"step":1}', b'{"step":"1","token_index":0}', b"\x00\x00", b"\xff"],
)
def test_what_is_no_record_is_refused(line: bytes) -> None:
    """A damaged or foreign line raises, whether it is decoded or only looked at."""
    with pytest.raises(MalformedEventError):
        codec.decode(line, SAELogRecord)
    with pytest.raises(MalformedEventError):
        codec.head(line, SAELogRecord)


def test_the_head_tells_step_and_layer() -> None:
    """Routing needs the scalars only."""
    head = codec.head(codec.encode(make_record(step=7, layer=2)), SAELogRecord)

    assert (head.step, head.layer_index) == (7, 2)
    assert codec.head(b'{"iter":3}', Progress).step == 3


def test_control_lines_are_told_apart_and_unknown_kinds_are_skipped() -> None:
    """A control line of a later version is no error, only unknown."""
    seal = Seal(checkpoint="checkpoint-1", step=1, segment=1, records=0, bytes=0, crc32=0)
    line = codec.encode(seal)

    assert codec.is_control(line)
    assert codec.decode_control(line) == seal
    assert codec.decode_control(b'{"$log":"hologram","depth":3}') is None
    assert not codec.is_control(codec.encode(make_record()))


def test_the_pass_is_called_pass_in_the_file() -> None:
    """The trailer names the forward pass under its plain word."""
    line = codec.encode(Batch(records=1, bytes=2, crc32=3, pass_="loss"))

    assert json.loads(line)["pass"] == "loss"


def test_an_opening_is_found_only_when_its_line_is_whole() -> None:
    """A header that is still being written counts as none."""
    line = codec.encode(
        Open(log="a", stream="sae_features", lane="rank0", segment=1, attempt=1, rank=0)
    )

    assert codec.decode_opening(line[:-1]) is None
    found = codec.decode_opening(line + b"{")
    assert found is not None
    assert found.log == "a"
