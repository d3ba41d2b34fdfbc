from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, isnan, nan
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from aegir_adapters.mixing import (
    Targets,
    aggregate_step_metrics,
    reduce_loss_metrics,
)
from aegir_stream.errors import OptionError

from .ranks import Ranks
from .streams import Source, mixer_of

Job = Callable[[], Any]
values = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([nan, inf, -inf, 0.1]))
named = st.dictionaries(st.sampled_from(["loss", "grad", "a/b", "tokens"]), values)


@contextmanager
def counted() -> Iterator[list[tuple[str, torch.dtype, int]]]:
    """Count the collectives of this process: operation, dtype, and numbers carried."""
    calls: list[tuple[str, torch.dtype, int]] = []
    real = distributed.all_reduce

    def all_reduce(tensor: torch.Tensor, op: Any, **options: Any) -> Any:
        calls.append((str(op).rsplit(".", 1)[-1], tensor.dtype, tensor.numel()))
        return real(tensor, op=op, **options)

    with mock.patch.object(distributed, "all_reduce", all_reduce):
        yield calls


def reduced(per_rank: list[dict[str, float]], options: dict[str, Any]) -> dict[str, float]:
    """Reduce this rank's metrics; without a process group, the first of the list."""
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    return reduce_loss_metrics(per_rank[rank], **options)


def by_hand(
    per_rank: list[dict[str, float]], keys: list[str], sum_keys: list[str]
) -> dict[str, float]:
    """Return what is expected, as NaN wherever a rank has NaN."""
    result = {}
    for key in keys:
        held = [metrics[key] for metrics in per_rank if key in metrics]
        total = sum(held)
        mean = total / len(held) if held else nan
        result[key] = float(total) if key in sum_keys else mean
        result[f"{key}_max"] = nan if not held or any(map(isnan, held)) else max(held)
    return result


def test_by_default_each_metric_is_its_mean_and_its_maximum(two_ranks: Ranks) -> None:
    """`k` is the mean over ranks and `k_max` the maximum; nothing else is returned."""
    per_rank = [{"loss": 1.0, "grad": 4.0}, {"loss": 2.0, "grad": -3.0}]
    expected = {"grad": 0.5, "grad_max": 4.0, "loss": 1.5, "loss_max": 2.0}
    assert two_ranks.run(reduced, per_rank, {}) == [expected, expected]


def test_listed_metrics_are_summed(two_ranks: Ranks) -> None:
    """A metric among `sum_keys` is its total over the ranks; its maximum stays one rank's."""
    per_rank = [{"loss": 1.0, "evictions": 4}, {"loss": 2.0, "evictions": 3}]
    expected = {"evictions": 7.0, "evictions_max": 4.0, "loss": 1.5, "loss_max": 2.0}
    assert two_ranks.run(reduced, per_rank, {"sum_keys": ["evictions"]}) == [expected] * 2


@settings(max_examples=60)
@given(st.lists(named, min_size=2, max_size=2), st.data())
def test_two_ranks_get_what_arithmetic_gives(
    two_ranks: Ranks, per_rank: list[dict[str, float]], data: st.DataObject
) -> None:
    """Missing, infinite and NaN values included, both ranks get the same, and it is by hand."""
    keys = sorted({"loss", "grad", "a/b", "tokens"})
    sum_keys = data.draw(st.lists(st.sampled_from(keys), unique=True))
    expected = by_hand(per_rank, keys, sum_keys)
    for result in two_ranks.run(reduced, per_rank, {"keys": keys, "sum_keys": sum_keys}):
        assert list(result) == list(expected)
        assert result == pytest.approx(expected, nan_ok=True)


@given(named, st.data())
def test_without_a_group_it_is_arithmetic(metrics: dict[str, float], data: st.DataObject) -> None:
    """One process alone gets what a group of one would: its own values."""
    sum_keys = data.draw(st.lists(st.sampled_from(sorted(metrics)), unique=True)) if metrics else []
    with counted() as calls:
        result = reduce_loss_metrics(metrics, sum_keys=sum_keys)
    assert result == pytest.approx(by_hand([metrics], sorted(metrics), sum_keys), nan_ok=True)
    assert calls == []


def collectives(many: int) -> list[tuple[str, torch.dtype, int]]:
    """Return which collectives a call with so many metrics makes."""
    # The order in which metrics were made differs between the ranks.
    order = range(many) if distributed.get_rank() == 0 else reversed(range(many))
    with counted() as calls:
        result = reduce_loss_metrics({f"m{n}": float(n) for n in order}, sum_keys=["m0"])
    assert [result[f"m{n}"] for n in range(many)] == [float(n) for n in range(many)]
    return calls


@pytest.mark.parametrize("many", [1, 30])
def test_any_number_of_metrics_is_two_collectives(two_ranks: Ranks, many: int) -> None:
    """One SUM and one MAX in float64, in an order that does not depend on that of the dicts."""
    for calls in two_ranks.run(collectives, many):
        assert [(operation, dtype) for operation, dtype, _ in calls] == [
            ("SUM", torch.float64),
            ("MAX", torch.float64),
        ]


def an_empty_rank() -> tuple[dict[str, float], int]:
    """Reduce on two ranks of which the second has nothing."""
    metrics = {"loss": 3.0, "n": 5.0} if distributed.get_rank() == 0 else {}
    with counted() as calls:
        result = reduce_loss_metrics(metrics, keys=["loss", "n", "other"], sum_keys=["n", "other"])
    return result, len(calls)


def test_a_rank_without_values_takes_part(two_ranks: Ranks) -> None:
    """It joins both collectives, drags no mean down, and learns the others' values."""
    for result, calls in two_ranks.run(an_empty_rank):
        assert calls == 2
        assert isnan(result.pop("other_max"))
        assert result == {"loss": 3.0, "loss_max": 3.0, "n": 5.0, "n_max": 5.0, "other": 0.0}


def a_wrong_call() -> tuple[str, int, float]:
    """Call wrongly on rank 0 first; then, on both ranks, rightly."""
    message = ""
    with counted() as calls:
        if distributed.get_rank() == 0:
            try:
                reduce_loss_metrics({"loss": 1.0}, sum_keys=["evictions"])
            except OptionError as error:
                message = str(error)
        wrong = len(calls)
    return message, wrong, reduce_loss_metrics({"loss": 1.0})["loss"]


def test_an_unknown_sum_key_is_refused_before_any_collective(two_ranks: Ranks) -> None:
    """The rank that is called wrongly meets nobody, so the next collective is still in step."""
    (message, calls, loss), (_, _, other_loss) = two_ranks.run(a_wrong_call)
    assert "`sum_keys` among the metrics ['loss'], got ['evictions']" in message
    assert calls == 0
    assert loss == other_loss == 1.0


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        ({"a": 1.0}, {"keys": ["b"]}, r"`metrics` among the metrics \['b'\], got \['a'\]"),
        ({"a": 1.0, "a_max": 2.0}, {}, "got 'a' and 'a_max'"),
        ({"a": 1.0}, {"sum_keys": ["b"]}, "`sum_keys`"),
    ],
)
def test_what_could_not_be_told_apart_is_refused(
    metrics: dict[str, float], options: dict[str, Any], message: str
) -> None:
    """Metrics outside of `keys`, and one named like another's maximum, are errors."""
    with pytest.raises(OptionError, match=message):
        reduce_loss_metrics(metrics, **options)


def test_tensors_are_metrics_too() -> None:
    """A tensor of one element counts as its value in float64."""
    result = reduce_loss_metrics({"a": torch.tensor([0.5], requires_grad=True), "n": 2**53 - 1})
    assert result == {"a": 0.5, "a_max": 0.5, "n": 2.0**53 - 1, "n_max": 2.0**53 - 1}


def a_large_count() -> dict[str, float]:
    """Sum counts that differ by one."""
    return reduce_loss_metrics({"tokens": 2.0**51 + distributed.get_rank()}, sum_keys=["tokens"])


def test_counts_are_exact_where_float32_rounds(two_ranks: Ranks) -> None:
    """Token counts of a long run survive: float32 would round from 16 million on."""
    assert two_ranks.run(a_large_count)[0]["tokens"] == 2.0**52 + 1


def on_a_mesh() -> tuple[float, float, str]:
    """Reduce over a mesh of this rank's own, over one of both ranks, and over a square."""
    square = init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp", "tp"))
    rank = float(distributed.get_rank())
    try:
        reduce_loss_metrics({"a": rank}, square)
    except OptionError as error:
        message = str(error)
    return (
        reduce_loss_metrics({"a": rank}, square["tp"])["a"],
        reduce_loss_metrics({"a": rank}, square["dp"].get_group())["a"],
        message,
    )


def test_a_mesh_or_a_group_says_which_ranks(two_ranks: Ranks) -> None:
    """One dimension of a mesh, or a process group, is reduced over; more than one is refused."""
    for rank, (alone, together, message) in enumerate(two_ranks.run(on_a_mesh)):
        assert alone == rank
        assert together == 0.5
        assert 'mesh["dp"]' in message


TARGETS = Targets.of({"a": 1, "b": 1}, {"a": "text", "b": "text"})


def a_rank_without_a_mixer() -> tuple[dict[str, float | None], int]:
    """Mix on rank 0 only."""
    raw: dict[str, float] = {}
    if distributed.get_rank() == 0:
        mixer = mixer_of([Source("a", 40), Source("b", 40)], shards=2, rank=0, world_size=1)
        list(mixer)
        raw = mixer.drain_step_metrics()
    with counted() as calls:
        return aggregate_step_metrics(raw, TARGETS), len(calls)


def test_a_rank_without_a_mixer_takes_part(two_ranks: Ranks) -> None:
    """It changes no sum, no maximum and no minimum, and learns the same seven scalars."""
    (here, calls), (there, other_calls) = two_ranks.run(a_rank_without_a_mixer)
    assert here == there
    assert here["stream_mixing/mix_tv"] == 0.0
    assert here["stream_mixing/live_readers_min"] == 0.0
    assert calls == other_calls == 2


def test_nobody_with_a_mixer_is_no_live_reader_at_all() -> None:
    """Where no rank has a mixer, what a minimum would be taken of is missing: `None`."""
    scalars = aggregate_step_metrics({}, TARGETS)
    assert scalars["stream_mixing/live_readers_min"] is None
    assert scalars["stream_mixing/staleness_max_steps"] == 0.0


def test_raw_values_of_another_mixer_are_refused() -> None:
    """Values that do not belong to the targets would be packed under wrong names: an error."""
    raw = mixer_of([Source("c", 1)]).drain_step_metrics()
    with pytest.raises(OptionError, match="stream_mixing/picks/c"):
        aggregate_step_metrics(raw, TARGETS)
