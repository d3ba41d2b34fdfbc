"""Records to test with, made up or drawn by hypothesis."""

from __future__ import annotations

from typing import Any

from aegir_stream import codec
from aegir_stream.events import SAELogRecord
from aegir_stream.typing import Append

__all__ = ["make_append", "make_record", "records"]


def make_record(
    *, step: int = 1, token: int = 0, layer: int = 0, completion: int | None = 0
) -> SAELogRecord:
    """Return a small, valid record that its arguments tell apart from others."""
    return SAELogRecord(
        step=step,
        token_index=token,
        layer_index=layer,
        top_feature_indices=(token, token + 7),
        top_feature_activations=(2.5 + token, 1.25),
        reconstruction_loss=0.5 + step,
        completion=completion,
    )


def make_append(*events: SAELogRecord, stream: str = "sae_features") -> Append:
    """Return an append of records (one made up record if none is given)."""
    events = events or (make_record(),)
    data = b"".join(map(codec.encode, events))
    return Append(stream=stream, data=data, records=len(events), step=events[0].step)


def records(*, max_features: int = 4) -> Any:
    """Return a hypothesis strategy for `SAELogRecord`, non-finite floats included.

    Needs hypothesis, which the `test` extra installs.
    """
    from hypothesis import strategies as st  # noqa: PLC0415 - only tests have hypothesis

    floats = st.floats(width=32)
    features = st.lists(
        st.tuples(st.integers(0, 2**24), floats), max_size=max_features, unique_by=lambda f: f[0]
    )
    return st.builds(
        lambda fired, **scalars: SAELogRecord(
            top_feature_indices=tuple(index for index, _ in fired),
            top_feature_activations=tuple(activation for _, activation in fired),
            **scalars,
        ),
        features,
        step=st.integers(0, 2**40),
        token_index=st.integers(0, 2**20),
        layer_index=st.integers(0, 200),
        reconstruction_loss=floats,
        completion=st.none() | st.integers(0, 2**20),
    )
