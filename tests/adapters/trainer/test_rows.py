from __future__ import annotations

import json
import math
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.trainer.cells import IntegerCells
from aegir_adapters.trainer.columns import SAEColumns
from aegir_adapters.trainer.rows import Precision, RowEncoder, encode_rows
from aegir_adapters.trainer.rows_exact import exact_lines
from aegir_stream import codec
from aegir_stream.errors import MalformedEventError, OptionError
from aegir_stream.events import PassName, SAELogRecord

DECLARED = RowEncoder()
EXACT = RowEncoder(Precision.exact())
NAN, INFINITY = math.nan, math.inf


def columns_of(
    activations: Any,
    *,
    indices: Any = None,
    loss: float = 1.0,
    step: int = 3,
    completion: int | None = 2,
) -> SAEColumns:
    """Return records with the given activations, (n, k), and something in all other columns."""
    fired = np.array(activations, np.float32, ndmin=2)
    n, k = fired.shape
    latents = np.arange(k) if indices is None else np.array(indices)
    return SAEColumns(
        step=step,
        token_index=np.arange(n, dtype=np.int32),
        layer_index=np.full(n, 14, np.int32),
        indices=np.ascontiguousarray(np.broadcast_to(latents, (n, k)), np.int32),
        activations=fired,
        reconstruction_loss=np.full(n, loss, np.float32),
        completion=None if completion is None else np.full(n, completion, np.int32),
    )


def decode(lines: bytes) -> list[SAELogRecord]:
    """Return the records as a typed reader sees them."""
    return [codec.decode(line, SAELogRecord) for line in lines.splitlines()]


def arrays(size: int, numbers: st.SearchStrategy[int]) -> st.SearchStrategy[list[int]]:
    """Return lists of exactly `size` numbers."""
    return st.lists(numbers, min_size=size, max_size=size)


# Few float32 drawn at random are of the size that a network produces; half of these are.
float32_bits = st.one_of(
    st.integers(0, 2**32 - 1),
    st.floats(0, 2**20, width=32).map(lambda value: int(np.float32(value).view(np.uint32))),
    st.sampled_from([0, 0x8000_0000, 1, 0x007F_FFFF, 0x7F7F_FFFF, 0x7F80_0000, 0x7FA0_0000]),
)
ids = st.one_of(st.integers(0, 2**24), st.integers(0, 2**31 - 1))


@st.composite
def any_columns(draw: st.DrawFn) -> SAEColumns:
    """Columns of any float32 and any id."""
    n, k = draw(st.integers(0, 5)), draw(st.integers(0, 4))
    activations = np.array(draw(arrays(n * k, float32_bits)), np.uint32)
    return SAEColumns(
        step=draw(st.integers(0, 2**63 - 1)),
        token_index=np.array(draw(arrays(n, ids)), np.int32),
        layer_index=np.array(draw(arrays(n, st.integers(0, 200))), np.int32),
        indices=np.array(draw(arrays(n * k, ids)), np.int32).reshape(n, k),
        activations=activations.view(np.float32).reshape(n, k),
        reconstruction_loss=np.array(draw(arrays(n, float32_bits)), np.uint32).view(np.float32),
        completion=draw(st.none() | arrays(n, ids).map(lambda column: np.array(column, np.int32))),
        pass_=draw(st.sampled_from(get_args(PassName))),
    )


def same_number(read: float, written: np.float32, *, digits: int) -> bool:
    """Tell whether `read` is `written`, rounded to nearest at so many digits."""
    if np.array_equal(np.float32(read), written, equal_nan=True):
        return True
    if not math.isfinite(written) or digits == Precision.exact().losses:
        return False
    unit = 10.0 ** (math.floor(math.log10(abs(written))) - digits + 1)
    return abs(read - float(written)) <= 0.500_001 * unit


def agrees(record: SAELogRecord, columns: SAEColumns, row: int, precision: Precision) -> bool:
    """Tell whether `record` is that row of `columns` within the declared precision."""
    latents = [
        (int(index), value)
        for index, value in zip(columns.indices[row], columns.activations[row], strict=True)
        if value > 0 or not math.isfinite(value)
    ]
    scalars = (columns.step, columns.token_index[row], columns.layer_index[row])
    return (
        (record.step, record.token_index, record.layer_index) == scalars
        and record.top_feature_indices == tuple(index for index, _ in latents)
        and all(
            same_number(read, value, digits=precision.activations)
            for read, (_, value) in zip(record.top_feature_activations, latents, strict=True)
        )
        and same_number(
            record.reconstruction_loss,
            columns.reconstruction_loss[row],
            digits=precision.losses,
        )
        and record.completion == (None if columns.completion is None else columns.completion[row])
        and record.pass_ == (None if columns.pass_ == "loss" else columns.pass_)
    )


@given(any_columns(), st.sampled_from([DECLARED, EXACT]))
def test_what_is_read_back_is_what_was_recorded(columns: SAEColumns, encoder: RowEncoder) -> None:
    """Any float32 and any id come back within the declared digits; zeros are left out."""
    records = decode(encoder.encode(columns))
    assert len(records) == columns.records
    assert all(
        agrees(record, columns, row, encoder.precision) for row, record in enumerate(records)
    )


@given(any_columns())
def test_the_exact_path_holds_the_same_contract(columns: SAEColumns) -> None:
    """A record that is written alone is bit for bit what was recorded."""
    for row, line in enumerate(exact_lines(columns, np.arange(columns.records))):
        assert agrees(decode(line)[0], columns, row, Precision.exact())


@given(any_columns())
def test_lines_are_json_to_any_reader(columns: SAEColumns) -> None:
    """One newline a line and no other control character; keys as `SAELogRecord` spells them."""
    lines = encode_rows(columns)
    assert lines.count(b"\n") == columns.records
    assert min(lines.replace(b"\n", b" "), default=ord(" ")) >= ord(" ")
    for line in lines.splitlines():
        absent = {"completion"} if columns.completion is None else set()
        absent |= {"pass"} if columns.pass_ == "loss" else set()
        known = [field.encode_name for field in msgspec.structs.fields(SAELogRecord)]
        assert list(json.loads(line)) == [name for name in known if name not in absent]
        assert msgspec.json.decode(line) == json.loads(line)


def test_a_usual_record_is_padded_text() -> None:
    """The line is what the documentation shows."""
    columns = columns_of([[11.923, 0.85822, 0.0]], indices=[[16_491, 7, 9]], loss=36.69103)
    assert encode_rows(columns) == (
        b'{"step":3,"token_index":   0,"layer_index":  14,"top_feature_indices":[16491,    7      ]'
        b',"top_feature_activations":[1.1923e+01,8.5822e-01           ]'
        b',"reconstruction_loss":3.669103e+01,"completion":   2}\n'
    )


def test_a_record_of_another_pass_names_it_last() -> None:
    """The line of a loss pass is what it was before there were others."""
    columns = columns_of([[1.0]])
    decoded = msgspec.structs.replace(columns, pass_="decode")
    assert encode_rows(decoded) == encode_rows(columns).replace(b"}", b',"pass":"decode"}')


@pytest.mark.parametrize(
    ("activations", "indices"),
    [
        ([0, 0, 0], ()),
        ([5, 0, 0], (0,)),
        ([5, 0, 3], (0, 2)),
        ([0, 0, 3], (2,)),
        ([-0.0, 2, -3], (1,)),
        ([NAN, 2, -INFINITY], (0, 1, 2)),
        ([1e-45, -1e-45, INFINITY], (0, 2)),
    ],
)
def test_what_is_finite_and_not_positive_goes_together_with_its_index(
    activations: list[float], indices: tuple[int, ...]
) -> None:
    """Zeros and negatives are left out wherever they stand; the non-finite stay."""
    (record,) = decode(encode_rows(columns_of([activations])))
    assert record.top_feature_indices == indices
    assert len(record.top_feature_activations) == len(indices)


@pytest.mark.parametrize(
    "index", [0, 9_999, 10_000, 99_999, 999_999, 2**24, 10**8 - 1, 10**8, 2**31 - 1]
)
def test_ids_are_exact(index: int) -> None:
    """No id is rounded, and a large one changes no smaller one beside it."""
    columns = columns_of([[1.0, 1.0], [1.0, 1.0]], indices=[[5, 3], [5, index]], completion=index)
    records = decode(encode_rows(columns))
    assert [record.top_feature_indices for record in records] == [(5, 3), (5, index)]
    assert {record.completion for record in records} == {index}


def test_an_odd_record_is_written_with_the_shortest_digits() -> None:
    """A float32 is not widened into the digits of a float64."""
    columns = columns_of([[0.1, 1e-45]], indices=[[IntegerCells.LIMIT, 0]])
    assert b":[0.1,1e-45]," in encode_rows(columns)


@pytest.mark.parametrize(
    ("name", "odd"), [("indices", IntegerCells.LIMIT), ("reconstruction_loss", -1)]
)
def test_one_odd_record_leaves_its_neighbours_alone(name: str, odd: int) -> None:
    """Only the record that does not fit the cells is written otherwise, in its place."""
    columns = columns_of([[2.0], [2.0], [2.0]], indices=[IntegerCells.LIMIT - 1])
    usual = encode_rows(columns).splitlines()
    getattr(columns, name)[1] = odd
    mixed = encode_rows(columns).splitlines()
    assert mixed[0::2] == usual[0::2]
    assert len(mixed[1]) < len(usual[1])
    assert agrees(decode(mixed[1])[0], columns, 1, DECLARED.precision)


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, 1e-45, 1e-39, 3.402_823_5e38])
@pytest.mark.parametrize("encoder", [DECLARED, EXACT])
def test_no_activation_leaves_the_fast_path(encoder: RowEncoder, value: float) -> None:
    """A diverged policy gives nothing but such records: they are lines of one width too."""
    columns = columns_of([[2.0, 0.0], [value, value], [0.0, value]])
    lines = encoder.encode(columns).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(
        agrees(record, columns, row, encoder.precision)
        for row, record in enumerate(decode(b"\n".join(lines)))
    )


@pytest.mark.parametrize("loss", [0.0, NAN, INFINITY, -INFINITY, 1e-45, 3.402_823_5e38])
def test_only_a_negative_loss_leaves_the_fast_path(loss: float) -> None:
    """Zero, the smallest, the largest and the non-finite losses are lines of one width too."""
    columns = columns_of([[2.0], [2.0]])
    columns.reconstruction_loss[1] = loss
    usual, line = encode_rows(columns).splitlines()
    assert len(line) == len(usual)
    assert agrees(decode(line)[0], columns, 1, DECLARED.precision)


def test_minus_infinity_adds_a_digit() -> None:
    """Its string is longer than five digits, so that the whole step has six."""
    columns = columns_of([[2.0], [-INFINITY]])
    assert b":[2.00000e+00]," in encode_rows(columns)
    assert b':["-Infinity"],' in encode_rows(columns)


def test_records_keep_their_order_over_blocks() -> None:
    """A step of more records than are written at once comes out in its order."""
    n = 2_500
    columns = columns_of(np.linspace(1, 9, n * 16).reshape(n, 16))
    columns.activations[::7, 5:] = 0
    records = decode(encode_rows(columns))
    assert all(
        agrees(record, columns, row, DECLARED.precision) for row, record in enumerate(records)
    )


def test_columns_without_records_are_no_lines() -> None:
    """Nothing recorded, nothing written."""
    assert encode_rows(columns_of(np.zeros((0, 4)))) == b""


@pytest.mark.parametrize("name", ["token_index", "layer_index", "indices", "completion"])
def test_a_negative_id_is_refused(name: str) -> None:
    """The error names the column and the value."""
    columns = columns_of([[1.0, 2.0]])
    getattr(columns, name)[...] = -4
    with pytest.raises(MalformedEventError, match=rf"`{name}` >= 0, got -4"):
        encode_rows(columns)


def test_the_index_of_what_did_not_fire_may_be_anything() -> None:
    """Padding needs no valid id."""
    (record,) = decode(encode_rows(columns_of([[1.0, 0.0]], indices=[[8, -1]])))
    assert record.top_feature_indices == (8,)


@pytest.mark.parametrize(
    "digits", [{"activations": 4}, {"activations": 10}, {"losses": 6}, {"losses": 10}]
)
def test_a_precision_that_is_not_offered_is_refused(digits: dict[str, int]) -> None:
    """Fewer digits than promised, or more than a float32 has, are an error."""
    with pytest.raises(OptionError, match="to 9 digits"):
        Precision(**digits)


def test_the_precision_is_declared_by_field() -> None:
    """The names are those of the record."""
    assert Precision().by_field() == {"top_feature_activations": 5, "reconstruction_loss": 7}
    assert set(Precision().by_field()) < set(SAELogRecord.__struct_fields__)
