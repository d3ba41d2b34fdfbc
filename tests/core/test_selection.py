from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from aegir_stream.selection import Selection

EVERYTHING = Selection()


def record(
    *, step: int = 1, token: int = 0, layer: int = 0, feature: int = 5, completion: int = 0
) -> bytes:
    """Return a record as it stands in a log."""
    return json.dumps(
        {
            "step": step,
            "token_index": token,
            "layer_index": layer,
            "top_feature_indices": [feature, 9],
            "top_feature_activations": [2.0, 1.0],
            "reconstruction_loss": 0.5,
            "completion": completion,
        }
    ).encode()


def test_nothing_asked_for_means_everything() -> None:
    """Without conditions every line passes, even one that is no record, and none is decoded."""
    assert list(EVERYTHING.indices([b"no json", record()], rank=3)) == [0, 1]
    assert not EVERYTHING.looks_into_records


def test_conditions_hold_together() -> None:
    """A record passes when its layer, step, feature and rank are all asked for."""
    records = [
        record(layer=0),
        record(layer=4),
        record(layer=4, step=7),
        record(layer=4, feature=1),
    ]
    selection = Selection(
        layers=frozenset({4}), features=frozenset({5}), step_max=6, ranks=frozenset({0})
    )

    assert selection.indices(records, rank=0) == [1]
    assert selection.indices(records, rank=1) == ()


def test_a_record_that_names_no_pass_is_of_the_loss_pass() -> None:
    """Records of other passes name theirs; any number of passes may be asked for."""
    records = [record(), record()[:-1] + b',"pass":"decode"}', record()[:-1] + b',"pass":"eval"}']

    assert Selection(passes=frozenset({"loss"})).indices(records, rank=0) == [0]
    assert Selection(passes=frozenset({"loss", "eval"})).indices(records, rank=0) == [0, 2]
    assert list(EVERYTHING.indices(records, rank=0)) == [0, 1, 2]


def test_a_line_that_is_no_record_meets_no_condition() -> None:
    """Foreign lines are passed over by a filter instead of ending the stream."""
    assert Selection(layers=frozenset({0})).indices([b"[1]", b'{"step": 1}'], rank=0) == []


@given(st.integers(1, 7), st.integers(0, 50), st.integers(0, 50))
def test_every_nth_token_is_kept_at_all_layers(every: int, step: int, completion: int) -> None:
    """Of any run of N tokens one is kept, the same at each layer."""
    selection = Selection(every=every)
    kept = {
        layer: selection.indices(
            [record(step=step, token=t, layer=layer, completion=completion) for t in range(21)],
            rank=0,
        )
        for layer in (0, 4)
    }

    assert list(kept[0]) == list(kept[4])
    assert {b - a for a, b in zip(kept[0], kept[0][1:], strict=False)} <= {every}
    assert kept[0][0] < every


@given(st.integers(1, 5))
def test_no_position_is_favoured(every: int) -> None:
    """Over N consecutive completions each of the first N positions is kept equally often."""
    records = [
        record(token=token, completion=completion)
        for completion in range(every)
        for token in range(every)
    ]

    kept = Selection(every=every).indices(records, rank=0)

    assert sorted(index % every for index in kept) == list(range(every))
