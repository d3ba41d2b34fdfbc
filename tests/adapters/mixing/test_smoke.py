from __future__ import annotations

import random
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegir_adapters.mixing.smoke import SmokeConfig, config_names, judge, load_config, run_smoke
from aegir_adapters.mixing.smoke.run import _start_method
from aegir_adapters.mixing.smoke.streams import Chunk, SyntheticStreams
from aegir_adapters.mixing.smoke.verdict import judge_events
from aegir_adapters.mixing.smoke.working_set import capacity_for, ledger_bands
from aegir_stream.errors import OptionError, RunExistsError, RunNotFoundError
from aegir_stream.events import StepMetrics
from aegir_stream.layout import RunDirectory

FRESH, RESIDENT = "ledger/fresh_writes", "ledger/resident_entries"
HEALTHY = load_config("healthy")

SMALL = """
summary = "A run for tests."

[ledger]
capacity = 4

[[readers]]
name = "a"
weight = 1
"""


def window(step: int, value: float | None, *, low: float = 0.0, high: float = 1.0) -> StepMetrics:
    """A window with one metric that is judged, and one that is not."""
    return StepMetrics(
        step=step, ts=0.0, metrics={"m": value, "loss": 9.0}, bands={"m": (low, high)}
    )


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("small_ledger", {"ledger"}),
        ("collapsed_mix", {"readers"}),
        ("tiny_reader", {"readers"}),
    ],
)
def test_a_diagnostic_run_is_the_healthy_one_but_for_its_fault(
    name: str, differs: set[str]
) -> None:
    """What raises the alarms is what the name says, and nothing else that was changed as well."""
    config, told = load_config(name), {"summary", "alarms"}
    fields = set(SmokeConfig.__struct_fields__)
    changed = {key for key in fields if getattr(config, key) != getattr(HEALTHY, key)}
    assert changed == differs | told
    assert config.targets == HEALTHY.targets, "judged by the mix that the healthy run has"


def test_every_metric_is_driven_out_of_its_band_by_one_configuration() -> None:
    """Eleven metrics, no two configurations for one of them."""
    alarms = [alarm for name in config_names() for alarm in load_config(name).alarms]
    assert len(alarms) == len(set(alarms)) == 11
    assert config_names() == ["healthy", "collapsed_mix", "small_ledger", "tiny_reader"]
    assert HEALTHY.alarms == []


def test_the_healthy_ledger_holds_the_working_set() -> None:
    """Its capacity makes a false eviction as unlikely as is said; the small one's is far less."""
    assert HEALTHY.ledger.capacity >= capacity_for(HEALTHY)
    small = load_config("small_ledger").ledger.capacity
    assert small * 2 < HEALTHY.shards * len(HEALTHY.readers)


@given(
    seed=st.integers(0, 2**32),
    shards=st.integers(1, 4),
    chunks=st.integers(1, 5),
    before=st.integers(0, 30),
    steps=st.integers(1, 30),
)
def test_no_window_has_more_starts_than_the_band_allows(
    seed: int, shards: int, chunks: int, before: int, steps: int
) -> None:
    """For certain, whatever is picked: at most P / L + S K (L - 1) / L streams start."""
    config = msgspec.structs.replace(
        HEALTHY, shards=shards, stream_chunks=chunks, log_every=steps, steps=before + steps
    )
    rng = random.Random(seed)  # noqa: S311 - picks, not secrets
    lanes = [[reader.open(s, shards) for reader in config.mixed] for s in range(shards)]
    open_lanes = [[iter(lane) for lane in lane_of_shard] for lane_of_shard in lanes]
    picks: list[list[Chunk]] = [
        [next(rng.choice(lane)) for lane in open_lanes] for _ in range(before + steps)
    ]
    starts = sum(chunk.starts for step in picks[before:] for chunk in step)
    high = ledger_bands(config, ranks=1, step=before + steps)[FRESH].high
    assert high is not None
    assert starts <= high + 1e-9


def test_the_working_set_is_asked_for_once_every_lane_was_picked() -> None:
    """Before that, a healthy ledger may hold less."""
    early = ledger_bands(HEALTHY, ranks=2, step=20)[RESIDENT]
    late = ledger_bands(HEALTHY, ranks=2, step=HEALTHY.steps)[RESIDENT]
    assert early == (0.0, 2.0 * HEALTHY.ledger.capacity)
    assert late == (48.0, 2.0 * HEALTHY.ledger.capacity)
    settled = next(
        step
        for step in range(HEALTHY.steps)
        if ledger_bands(HEALTHY, ranks=2, step=step)[RESIDENT].low
    )
    unpicked = 48 * 0.7**settled
    assert unpicked <= HEALTHY.false_alarm < unpicked / 0.7


def test_a_stream_goes_on_from_chunk_to_chunk() -> None:
    """Each pass has the same streams; a shard has those that no other has."""
    streams = SyntheticStreams("a", 5, 3, 4)
    shards = [list(streams(shard, 2)) for shard in (0, 1)]
    assert [list(streams(shard, 2)) for shard in (0, 1)] == shards
    assert {chunk.key for chunk in shards[0]} == {"a/0", "a/2", "a/4"}
    assert {chunk.key for chunk in shards[1]} == {"a/1", "a/3"}
    assert [chunk.starts for chunk in shards[1]] == [True, False, False] * 2
    for before, after in zip(shards[0], shards[0][1:], strict=False):
        assert after.starts or after.tokens[0] == before.tokens[-1]


def test_a_metric_that_was_out_once_is_told() -> None:
    """Each window is judged by its own band, and the newest value is shown."""
    verdict = judge_events([window(1, 0.5), window(2, 3.0), window(3, 2.5, high=3.0)], alarms=["m"])
    loss, judged = verdict.metrics
    assert (judged.value, judged.band, judged.windows, judged.out) == (2.5, (0.0, 3.0), 3, 1)
    assert judged.alarm
    assert (loss.name, loss.band, loss.alarm) == ("loss", None, False)
    assert verdict.passed


@pytest.mark.parametrize(
    ("values", "alarms", "outcome"),
    [
        ([0.5], [], "passes"),
        ([0.5], ["m"], "fails"),
        ([1.5], [], "fails"),
        ([1.5], ["m"], "passes"),
        ([1.5], ["m", "n"], "fails"),
        ([None], [], "passes"),
        ([float("nan")], ["m"], "passes"),
        ([], [], "fails"),
    ],
)
def test_a_run_passes_if_exactly_the_expected_metrics_are_out(
    values: list[float | None], alarms: list[str], outcome: str
) -> None:
    """None more, none less; a log without a window shows nothing."""
    events = [window(step, value) for step, value in enumerate(values)]
    assert judge_events(events, alarms=alarms).passed is (outcome == "passes")


def test_a_run_that_is_not_there_is_not_judged(tmp_path: Path) -> None:
    """It is named instead."""
    with pytest.raises(RunNotFoundError):
        judge(RunDirectory.at(tmp_path / "nothing"), alarms=[])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alarms = ['loss']" + SMALL, r"Expected `alarms` among .*, got \['loss'\]"),
        ("log_every = 0" + SMALL, "Expected `log_every` from 1 to `steps`, got `0`"),
        ("shards = 0" + SMALL, "of at least 1"),
        (SMALL.replace("capacity = 4", "capacity = 0"), "Expected `capacity` of at least 1"),
        ("speed = 3" + SMALL, "unknown field `speed`"),
        ("steps = 'many'" + SMALL, r"Expected `int`, got `str` - at `\$.steps`"),
        ("=", "Invalid"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    """Before any process is started, by the name of the key."""
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(OptionError, match=message):
        load_config(str(file))


def test_a_configuration_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The message lists those that are."""
    with pytest.raises(OptionError, match=r"\(healthy, collapsed_mix, .* got `nope`"):
        load_config("nope")
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        load_config(str(tmp_path / "nope.toml"))


def test_shards_have_to_be_dealt_evenly() -> None:
    """Each rank gives one chunk of each of its shards to a step, and as many as the others."""
    assert HEALTHY.batch(2) == 8
    with pytest.raises(OptionError, match="divides 16 shards, got `3`"):
        HEALTHY.batch(3)


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    """A second run in it would be judged together with the first."""
    (tmp_path / "file").touch()
    with pytest.raises(RunExistsError, match="Expected an empty directory"):
        run_smoke(HEALTHY, ranks=2, output_dir=tmp_path)


def test_a_process_with_threads_is_not_forked() -> None:
    """Another thread may hold a lock that nobody would ever release in the child."""
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        assert _start_method() == "spawn"
    finally:
        end.set()
        other.join()
