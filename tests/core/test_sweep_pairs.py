from __future__ import annotations

import itertools
import math
import random
import tempfile

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_stream import codec
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import (
    SweepCell,
    SweepEnded,
    SweepEvent,
    SweepPair,
    SweepSkipped,
    SweepStarted,
    SweptLatent,
)
from aegir_stream.sweep_log import SweepLog
from aegir_stream.sweep_reader import SweepReader, decode_sweep_event, read_sweep
from aegir_stream.views import (
    SweepColumn,
    SweepGrids,
    SweepView,
    baselines_of,
    columns_of,
    scale_of,
)

HOOKS, LAYERS, COLUMNS = ("resid_pre", "mlp_out"), (0, 2), (0, 1, 2)
PAIRS = (
    SweepPair(
        tokens=("41", "0a", "=>"),
        positions=((0,), (1,), (2,)),
        clean_tokens=("41", "20", "=>"),
        clean_positions=((0,), (1,), (2,)),
        answer="SPACE",
        unpatched=-4.0,
        restored=-1.0,
        corrupt=-4.0,
        clean=-1.0,
    ),
    SweepPair(
        tokens=("41", "41", "0b", "=>"),
        positions=((1,), (2,), (3,)),
        clean_tokens=("41", "20", "=>"),
        clean_positions=((0,), (1,), (2,)),
        answer="DIGIT",
        unpatched=-2.0,
        restored=-0.5,
        corrupt=-2.0,
        clean=-0.5,
    ),
    SweepPair(tokens=("7a", "0c", "=>"), positions=((0,), (1,), (2,)), unpatched=0.0, restored=0.0),
)
STARTED = SweepStarted(
    model="checkpoint-4",
    tokens=PAIRS[0].tokens,
    hooks=HOOKS,
    layers=LAYERS,
    positions=COLUMNS,
    metric="logprob",
    unpatched=-4.0,
    restored=-1.0,
    pairs=PAIRS,
    cells=36,
)
KEYS = list(itertools.product(HOOKS, LAYERS, COLUMNS, range(len(PAIRS))))

values = st.none() | st.floats(-1e6, 1e6)
cells = st.builds(
    lambda key, value, flags: SweepCell(
        hook=key[0],
        layer=key[1],
        position=key[2],
        pair=key[3],
        value=value,
        below_noise=flags[0],
        free=flags[1],
        error="no number" if flags[2] else None,
    ),
    st.sampled_from(KEYS),
    values,
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
each_once = st.lists(cells, max_size=60, unique_by=lambda c: (c.hook, c.layer, c.position, c.pair))


def fold(*batches: list[SweepEvent]) -> SweepGrids:
    """Fold batches of events, one after the other."""
    view = SweepView()
    state = view.initial()
    for batch in batches:
        state = view.fold(state, batch)
    return state


def cut(events: list[SweepEvent], places: list[int]) -> list[list[SweepEvent]]:
    """Cut a list into batches at these places."""
    ends = sorted(place % (len(events) + 1) for place in places)
    return [events[a:b] for a, b in zip([0, *ends], [*ends, len(events)], strict=True)]


def shown(state: SweepGrids) -> str:
    """Return all that can be read of a sweep: its mean, each pair, and how far it is."""
    pairs = [state.pair(index) for index in range(state.pairs)]
    told = [[[one.rows(hook) for hook in HOOKS], one.extremes()] for one in (state, *pairs)]
    scales = [scale_of(one) for one in (state, *pairs)]
    return repr((told, scales, state.free, state.failed, len(state.cells)))


def cell(pair: int, value: float | None, **changed: object) -> SweepCell:
    """Return the cell at the beginning of the first grid, of one pair."""
    first = SweepCell(hook="resid_pre", layer=0, position=0, value=value, pair=pair)
    return msgspec.structs.replace(first, **changed)


# -- the mean --------------------------------------------------------------------------------------


@given(each_once, st.lists(st.integers(0, 100), max_size=6), st.randoms())
def test_the_order_of_cells_does_not_matter(
    found: list[SweepCell], places: list[int], chance: random.Random
) -> None:
    """Whichever cell comes first, of whichever pair and in appends of whatever size: the same."""
    events: list[SweepEvent] = [STARTED, *found]
    shuffled = list(events)
    chance.shuffle(shuffled)
    assert shown(fold(*cut(shuffled, places))) == shown(fold(events))


@given(each_once)
def test_a_cell_is_the_mean_over_its_pairs(found: list[SweepCell]) -> None:
    """As a plain loop over all cells has it; where a pair has no value the mean has none."""
    state = fold([STARTED, *found])
    for hook, layer, position in itertools.product(HOOKS, LAYERS, COLUMNS):
        of_pairs = [
            [c for c in found if (c.hook, c.layer, c.position, c.pair) == (*place, pair)]
            for place in [(hook, layer, position)]
            for pair in range(len(PAIRS))
        ]
        mean = state.rows(hook)[LAYERS.index(layer)][COLUMNS.index(position)]
        if not all(of_pairs):
            assert mean is None
            continue
        every = [one for (one,) in of_pairs]
        assert mean is not None
        assert (mean.hook, mean.layer, mean.position) == (hook, layer, position)
        assert (mean.below_noise, mean.free) == (
            all(c.below_noise for c in every),
            all(c.free for c in every),
        )
        assert (mean.error is None) == all(c.error is None for c in every)
        total = 0.0
        for one in every:
            total += one.value or 0.0
        missing = any(one.value is None for one in every)
        assert mean.value == (None if missing else pytest.approx(total / 3, rel=1e-12, abs=1e-9))


def test_a_mean_is_there_when_its_last_pair_is() -> None:
    """Until then it is to come, while what is there of each pair can be read."""
    state = fold([STARTED, cell(0, 1.0), cell(2, 4.0)])
    assert state.cell("resid_pre", 0, 0) is None
    assert [state.pair(index).cell("resid_pre", 0, 0) is None for index in range(3)] == [
        False,
        True,
        False,
    ]
    state = SweepView().fold(state, [cell(1, 1.0)])
    mean = state.cell("resid_pre", 0, 0)
    assert mean is not None
    assert mean.value == 2.0
    assert [best.value for best in state.extremes()] == [2.0]


def test_the_pair_that_failed_is_named() -> None:
    """A mean without a value says whose fault it is, and only those of all pairs are noise."""
    state = fold([STARTED, cell(0, 1.0, below_noise=True), cell(1, None, error="no number")])
    state = SweepView().fold(state, [cell(2, 1.0, below_noise=True)])
    mean = state.cell("resid_pre", 0, 0)
    assert mean is not None
    assert (mean.value, mean.error, mean.below_noise) == (None, "Pair 1: no number", False)
    assert state.failed == 1


def test_a_mean_may_be_no_number() -> None:
    """Values that are no numbers make a mean that is none, and is never the best."""
    state = fold([STARTED, cell(0, math.inf), cell(1, -math.inf), cell(2, 1.0)])
    mean = state.cell("resid_pre", 0, 0)
    assert mean is not None
    assert mean.value is not None
    assert math.isnan(mean.value)
    assert state.best("resid_pre") is None


# -- one pair --------------------------------------------------------------------------------------


@given(each_once)
def test_a_pair_is_what_it_would_be_alone(found: list[SweepCell]) -> None:
    """Its grids are those of its own cells, and its prompts, answer and baselines its own."""
    state = fold([STARTED, *found, SweepEnded(status="finished", cells=len(found))])
    for index, pair in enumerate(PAIRS):
        alone = state.pair(index)
        own = [msgspec.structs.replace(c, pair=0) for c in found if c.pair == index]
        assert alone.started is not None
        expected = fold([alone.started, *own])
        assert [alone.rows(hook) for hook in HOOKS] == [expected.rows(hook) for hook in HOOKS]
        assert (alone.started.tokens, alone.started.answer) == (pair.tokens, pair.answer)
        assert (alone.started.cells, len(alone.cells)) == (12, len(own))
        assert alone.ended is not None
        assert (alone.ended.cells, alone.ended.best) == (len(own), alone.extremes())
        assert scale_of(alone).zero == pair.unpatched


def test_a_sweep_without_pairs_is_its_own_only_pair() -> None:
    """There is no other."""
    state = fold([msgspec.structs.replace(STARTED, pairs=()), cell(0, 0.5)])
    assert state.pairs == 1
    assert state.pair(0) is state
    assert SweepGrids(cells={}).pair(0).started is None
    for index in (-1, 1):
        with pytest.raises(IndexError):
            state.pair(index)


def test_the_scale_of_a_mean_goes_between_the_mean_baselines() -> None:
    """Where one pair has no clean prompt there is no clean value, but the furthest mean."""
    assert (scale_of(fold([STARTED])).zero, scale_of(fold([STARTED])).one) == (-2.0, -0.5)
    assert baselines_of(STARTED).corrupt is None
    two = msgspec.structs.replace(STARTED, pairs=PAIRS[:2])
    assert (baselines_of(two).corrupt, baselines_of(two).clean) == (-3.0, -0.75)
    lost = msgspec.structs.replace(PAIRS[1], restored=None)
    scale = scale_of(
        fold(
            [
                msgspec.structs.replace(STARTED, pairs=(PAIRS[0], lost)),
                cell(0, -10.0),
                cell(1, 0.0),
                cell(0, 90.0, position=1),
            ]
        )
    )
    assert (scale.measured, scale.zero, scale.one) == (False, -3.0, -1.0)


# -- columns ---------------------------------------------------------------------------------------


def test_columns_name_what_all_pairs_have_in_common() -> None:
    """A token that is not the same in every pair is left open; what differs anywhere is told."""
    first, second, third = columns_of(STARTED)
    assert (first.token, second.token, third.token) == ("…", "…", "=>")
    assert (second.positions, second.differs, third.differs) == ((1,), True, False)
    alone = fold([STARTED]).pair(1).started
    assert alone is not None
    assert columns_of(alone)[1] == SweepColumn(
        position=1, positions=(2,), token="0b", clean_token="20", differs=True
    )
    assert columns_of(msgspec.structs.replace(STARTED, pairs=PAIRS[2:]))[0].clean_token is None


def test_a_group_is_one_column() -> None:
    """It has its name, its positions, and the text of all of them."""
    pair = SweepPair(
        tokens=("a", "b", "c", "d"),
        positions=((1, 2), (3,)),
        clean_tokens=("a", "x", "c", "d"),
        clean_positions=((1, 2), (3,)),
    )
    started = msgspec.structs.replace(
        STARTED, columns=("subject", "last"), positions=(0, 1), pairs=(pair,)
    )
    assert columns_of(started) == [
        SweepColumn(
            position=0,
            positions=(1, 2),
            token="b c",
            clean_token="x c",
            differs=True,
            name="subject",
        ),
        SweepColumn(position=1, positions=(3,), token="d", clean_token="d", name="last"),
    ]


def test_columns_that_the_record_does_not_explain_are_empty() -> None:
    """Whatever a damaged first line says, every position has a column."""
    damaged = SweepPair(tokens=("a",), positions=((), (7,)), clean_tokens=(), clean_positions=())
    started = msgspec.structs.replace(STARTED, columns=("one",), pairs=(damaged,))
    assert [(column.name, column.token, column.differs) for column in columns_of(started)] == [
        ("one", "", False),
        (None, "", False),
        (None, "", False),
    ]


# -- the file --------------------------------------------------------------------------------------

OLD = """\
{"type":"start","model":"checkpoint-4","tokens":["41","0a"],"hooks":["resid_pre"],"layers":[0],\
"positions":[0,1],"metric":"recovered","clean_tokens":["41","20"],"clean_positions":[0,1],\
"answer":"SPACE","unpatched":0.0,"restored":1.0,"corrupt":-6.0,"clean":-1.0,"cells":2,"free":1,\
"computed":1,"engine":"staircase","sweep":"00001"}
{"type":"cell","hook":"resid_pre","layer":0,"position":1,"value":0.75}
{"type":"cell","hook":"resid_pre","layer":0,"position":0,"value":0.0,"free":true}
{"type":"end","status":"finished","best":[{"hook":"resid_pre","layer":0,"position":1,\
"value":0.75}],"cells":2,"elapsed_s":0.5}
"""


def test_a_record_of_an_earlier_version_is_what_it_was() -> None:
    """Without pairs, columns, latent or method: one pair, columns are positions, cells exact."""
    events = [decode_sweep_event(line) for line in OLD.encode().splitlines()]
    state = fold([event for event in events if event])
    assert state.started is not None
    assert (state.started.method, state.started.latent, state.pairs) == ("exact", None, 1)
    ((first, second),) = state.rows("resid_pre")
    assert first is not None
    assert second is not None
    assert (first.value, first.free, second.value) == (0.0, True, 0.75)
    assert [(c.position, c.positions, c.token, c.differs) for c in columns_of(state.started)] == [
        (0, (0,), "41", False),
        (1, (1,), "0a", True),
    ]
    assert (scale_of(state).zero, scale_of(state).one) == (0.0, 1.0)


def test_a_sweep_of_one_pair_is_written_as_before() -> None:
    """What is new stands in a line only where it is used."""
    plain = msgspec.structs.replace(STARTED, pairs=())
    new = {b"method", b"columns", b"latent", b"pairs", b"estimated", b'"pair"'}
    lines = codec.encode(plain) + codec.encode(cell(0, 0.5))
    assert not [name for name in new if name in lines]


@given(st.lists(cells, max_size=20), st.sampled_from(["exact", "attribution"]))
def test_what_is_recorded_of_pairs_is_read_again(found: list[SweepCell], method: str) -> None:
    """Pairs, names of columns, latent and method, and the cells of every pair."""
    started = msgspec.structs.replace(
        STARTED,
        method=method,
        columns=("subject", "verb", "last"),
        latent=SweptLatent(layer=2, index=7, sae="layer-2", activations=(0.0, 1.5, 0.0)),
        skipped=(SweepSkipped(position=1, reason="no counterpart", pair=2),),
    )
    with tempfile.TemporaryDirectory() as directory:
        run = RunDirectory.at(directory)
        with SweepLog(run, started) as log:
            reader = SweepReader(run, run.sweeps()[0])
            for one in found:
                log.append([one])
                reader.poll()
            log.end(SweepEnded(status="finished"))
        reader.poll()
        replayed = read_sweep(run, log.sweep)
        assert replayed is not None
        assert replayed.grids.started == log.started
        assert shown(replayed.grids) == shown(reader.grids) == shown(log.grids)
        assert replayed.grids.ended is not None
        assert replayed.grids.ended.best == replayed.grids.extremes()
