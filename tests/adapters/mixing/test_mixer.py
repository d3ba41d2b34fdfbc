from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader  # type: ignore[import-untyped]

from aegir_adapters.mixing import Reader, ReaderError, StateError, StreamMixer, merge_states
from aegir_stream.errors import OptionError

from .ranks import Ranks
from .streams import Breaking, Item, Source, mixer_of, mixes

# torchdata 0.11 calls what torch 2.13 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

SHARDS = 4
ONCE = [Source("web/en", 33), Source("code", 20, weight=3.0), Source("maths", 1), Source("none", 0)]
ENDLESS = [Source("web", 20, 2.0, "cycle"), Source("code", 9, 1.0, "cycle"), Source("once", 13)]
every_cut = st.integers(0, 60)


def as_is(items: list[Any]) -> list[Any]:
    """Collate nothing."""
    return items


def first(sources: Sequence[Source], n: int, **options: Any) -> list[Item]:
    """Return the first n items of an uninterrupted run."""
    return list(islice(mixer_of(sources, shards=SHARDS, **options), n))


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as it comes back from a file."""
    loaded: dict[str, Any] = json.loads(json.dumps(state))
    return loaded


# -- the stream --------------------------------------------------------------------------------


@given(mixes(), st.integers())
def test_a_seed_decides_on_every_pick(sources: list[Source], seed: int) -> None:
    """Two mixers with one seed yield the same items, and so does a second iteration."""
    mixer = mixer_of(sources, seed=seed, shards=SHARDS)
    items = list(islice(mixer, 200))
    assert items == first(sources, 200, seed=seed) == list(islice(mixer, 200))


def test_seeds_differ() -> None:
    """Another seed picks in another order."""
    assert first(ENDLESS, 50, seed=1) != first(ENDLESS, 50, seed=2)


@given(mixes(on_end=["drop"]))
def test_a_stream_ends_when_all_readers_have_ended(sources: list[Source]) -> None:
    """Readers that drop yield each item once, in order; behind the last the stream is over."""
    mixer = mixer_of(sources, shards=SHARDS)
    stream = iter(mixer)
    items = list(stream)
    assert sorted(items) == sorted(chain.from_iterable(s.items(SHARDS) for s in sources))
    for place in {(item.reader, item.shard) for item in items}:
        numbers = [item.number for item in items if (item.reader, item.shard) == place]
        assert numbers == sorted(numbers)
    assert list(stream) == []
    assert mixer.drain_step_metrics()["stream_mixing/live_readers_min"] == 0


def test_a_reader_that_cycles_begins_anew() -> None:
    """A reader that cycles yields its items pass after pass, in the same order."""
    items = first([Source("a", 8, on_end="cycle")], 24)
    assert items == [Item("a", shard, n) for n in (0, 1, 0, 1, 0, 1) for shard in range(SHARDS)]


def test_a_reader_without_items_is_left_out() -> None:
    """A reader that cycles over nothing does not keep the others waiting, nor is it a restart."""
    mixer = mixer_of([Source("none", 0, 9.0, "cycle"), Source("a", 8)], shards=SHARDS)
    assert sorted(mixer) == sorted(Source("a", 8).items(SHARDS))
    assert mixer.drain_step_metrics()["stream_mixing/reader_restarts"] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_reader_is_named(workers: int) -> None:
    """The error says which reader failed at which item, and the cause stays in it."""
    readers = [Source("good", 8, 1e-9).reader(), Reader(name="bad", weight=1, open=Breaking("bad"))]
    loader = DataLoader(
        StreamMixer(readers, shards=1), batch_size=None, num_workers=workers, collate_fn=as_is
    )
    place = "Reader 'bad' failed at item 3 of pass 0 in shard 0 of 1"
    with pytest.raises(ReaderError, match=rf"{place}.*OSError: no such block"):
        list(loader)


def test_a_mixer_is_checked_when_it_is_made() -> None:
    """What cannot be mixed is refused with the reader's name, before anything is read."""
    good = Source("a", 1).reader()
    wrong: list[tuple[list[Reader], dict[str, Any], str]] = [
        ([], {}, "at least one reader"),
        ([good, good], {}, r"\['a'\] more than once"),
        ([Source("a", 1, -1.0).reader()], {}, "weight for reader 'a', got -1.0"),
        ([Source("a", 1, float("nan")).reader()], {}, "got nan"),
        ([Source("a", 1, on_end="stop").reader()], {}, "`cycle` or `drop`"),  # type: ignore[arg-type]
        ([good], {"shards": 0}, "at least one shard, got 0"),
        ([good], {"rank": 0}, "`rank` and `world_size` or neither"),
        ([good], {"rank": 2, "world_size": 2}, r"rank in 0\.\.1, got 2"),
    ]
    for readers, options, message in wrong:
        with pytest.raises(OptionError, match=message):
            StreamMixer(readers, **options)
    with pytest.raises(OptionError, match="shards=5 or more"):
        iter(StreamMixer([good], shards=4, rank=0, world_size=5))


def test_a_stream_outlives_its_mixer() -> None:
    """An iterator keeps what it counts in: it can be all that is left of a mixer."""
    stream = iter(mixer_of(ENDLESS, shards=SHARDS))
    assert list(islice(stream, 100)) == first(ENDLESS, 100)


# -- resuming ----------------------------------------------------------------------------------


@given(mixes(), every_cut)
def test_a_resumed_run_picks_as_an_uninterrupted_one(sources: list[Source], cut: int) -> None:
    """Wherever a run is interrupted, the next one yields what would have come."""
    whole = first(sources, 120)
    mixer = mixer_of(sources, shards=SHARDS)
    before = list(islice(mixer, cut))
    resumed = mixer_of(sources, shards=SHARDS)
    resumed.load_state_dict(saved(mixer.state_dict()))
    assert before + list(islice(resumed, 120 - len(before))) == whole


class Lines(list[Item]):
    """A sequence that can be iterated only from its beginning: to go on, it is indexed."""

    def __iter__(self) -> Iterator[Item]:
        """Fail."""
        raise AssertionError("read from its beginning")


class Skipping(list[Item]):
    """A dataset that can skip, as those of Hugging Face can."""

    def skip(self, n: int) -> list[Item]:
        """Return what is left without the first n."""
        return list(self[n:])


@pytest.mark.parametrize("kind", [Skipping, Lines])
def test_a_resumed_run_reads_no_item_again_where_it_need_not(kind: type[list[Item]]) -> None:
    """A pass that can be entered in its middle is, instead of reading what was seen before."""
    items = [Item("a", 0, n) for n in range(9)]
    mixer = StreamMixer([Reader(name="a", weight=1, open=lambda _, __: items)], shards=1)
    assert list(islice(mixer, 4)) == items[:4]
    resumed = StreamMixer([Reader(name="a", weight=1, open=lambda _, __: kind(items))], shards=1)
    resumed.load_state_dict(mixer.state_dict())
    assert list(islice(resumed, 5)) == items[4:]


@given(mixes(), every_cut)
def test_a_prefetch_thread_resumes_exactly(sources: list[Source], cut: int) -> None:
    """The state taken beside an item on the thread that reads is that of the item's consumer."""
    mixer = mixer_of(sources, shards=SHARDS)
    fetched: queue.Queue[tuple[Item, dict[str, Any]] | None] = queue.Queue(maxsize=5)

    def prefetch() -> None:
        for item in islice(mixer, cut + 5):
            fetched.put((item, mixer.state_dict()))
        fetched.put(None)

    whole, state = first(sources, 120), mixer.state_dict()
    consumed: list[Item] = []
    thread = threading.Thread(target=prefetch)
    thread.start()
    while (got := fetched.get()) is not None:
        if len(consumed) < cut:
            consumed.append(got[0])
            state = got[1]
    thread.join()
    resumed = mixer_of(sources, shards=SHARDS)
    resumed.load_state_dict(saved(state))
    assert consumed + list(islice(resumed, 120 - len(consumed))) == whole


def batches(mixer: StreamMixer, workers: int) -> StatefulDataLoader:
    """Return a loader of batches of three."""
    return StatefulDataLoader(mixer, batch_size=3, num_workers=workers, collate_fn=as_is)


@pytest.mark.parametrize(("workers", "examples"), [(0, 50), (2, 6)])
def test_a_stateful_loader_resumes_exactly(workers: int, examples: int) -> None:
    """Whatever its workers have prefetched, a loader goes on behind the last batch handed out."""

    @settings(max_examples=examples)
    @given(mixes(), st.integers(0, 12))
    def resumes(sources: list[Source], cut: int) -> None:
        whole = list(islice(batches(mixer_of(sources, shards=SHARDS), workers), 20))
        loader = batches(mixer_of(sources, shards=SHARDS), workers)
        before = list(islice(loader, cut))
        state = loader.state_dict()
        resumed = batches(mixer_of(sources, shards=SHARDS), workers)
        resumed.load_state_dict(state)
        # A state taken behind the end of an epoch is the beginning of the next.
        kept = before if len(before) == cut else []
        assert kept + list(islice(resumed, 20 - len(kept))) == whole

    resumes()


def test_an_epoch_after_a_resumed_one_is_whole() -> None:
    """A loaded state is where one iteration begins, in workers too; the next is a whole stream."""
    mixer = mixer_of(ONCE, shards=SHARDS)
    list(islice(mixer, 30))
    for workers in (0, 2):
        resumed = mixer_of(ONCE, shards=SHARDS)
        resumed.load_state_dict(mixer.state_dict())
        loader = DataLoader(resumed, batch_size=None, num_workers=workers, collate_fn=as_is)
        epochs = [list(loader), list(loader)]
        assert [len(epoch) for epoch in epochs] == [24, 54]


def test_the_state_is_refused_where_nobody_knows_it() -> None:
    """While plain workers read, the process beside them says that it does not know how far."""
    mixer = mixer_of(ENDLESS, shards=SHARDS)
    loader = DataLoader(mixer, batch_size=None, num_workers=1, collate_fn=as_is)
    next(iter(loader))
    with pytest.raises(StateError, match="StatefulDataLoader"):
        mixer.state_dict()


# -- another number of ranks or workers, other readers ------------------------------------------


def read_on_ranks(
    sources: Sequence[Source], cuts: Sequence[int | None], state: dict[str, Any] | None = None
) -> tuple[list[Item], dict[str, Any]]:
    """Read so many items on each of some ranks; return all, and the merged state."""
    items, states = [], []
    for rank, cut in enumerate(cuts):
        mixer = mixer_of(sources, shards=SHARDS, rank=rank, world_size=len(cuts))
        if state is not None:
            mixer.load_state_dict(state)
        items += list(islice(mixer, cut))
        states.append(mixer.state_dict())
    return items, saved(merge_states(states))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (4, 1)])
@given(mixes(on_end=["drop"]), st.lists(every_cut, min_size=4, max_size=4))
def test_another_number_of_ranks_loses_and_doubles_nothing(
    before: int, after: int, sources: list[Source], cuts: list[int]
) -> None:
    """However far each rank got, the ranks that follow read every other item, each once."""
    sources = [source._replace(length=min(source.length, 60)) for source in sources]
    first_half, state = read_on_ranks(sources, cuts[:before])
    second_half, _ = read_on_ranks(sources, [None] * after, state)
    everything = chain.from_iterable(source.items(SHARDS) for source in sources)
    assert sorted(first_half + second_half) == sorted(everything)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_reshard_is_said_in_one_line(
    before: int, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One INFO line over all ranks says what was found, matched, new and dropped."""
    caplog.set_level(logging.INFO, logger="aegir_stream")
    _, state = read_on_ranks(ONCE, [5] * before)
    read_on_ranks(ONCE, [5] * after, state)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert caplog.messages == [
        (
            f"Stream mixing resumes on {after} rank(s), saved on {before}: 4 of 4 shards found;"
            " readers matched: web/en, code, maths, none; new, from their beginning: none;"
            " dropped: none"
        )
    ]


def test_an_unchanged_resume_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The line is for what changed."""
    caplog.set_level(logging.INFO, logger="aegir_stream")
    _, state = read_on_ranks(ONCE, [5, 5])
    read_on_ranks(ONCE, [5, 5], state)
    assert caplog.messages == []


def test_changed_readers_are_matched_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """A new reader begins at its beginning, one that is gone is dropped, the others go on."""
    caplog.set_level(logging.INFO, logger="aegir_stream")
    gone, kept, new = Source("gone", 40), Source("kept", 40), Source("new", 40)
    before, state = read_on_ranks([gone, kept], [20])
    after, _ = read_on_ranks([new, kept], [None], state)
    assert sorted(item for item in before + after if item.reader == "kept") == sorted(
        kept.items(SHARDS)
    )
    assert sorted(item for item in after if item.reader == "new") == sorted(new.items(SHARDS))
    assert "gone" not in {item.reader for item in after}
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith(
        "readers matched: kept; new, from their beginning: new; dropped: gone"
    )


def test_a_reader_that_drops_no_longer_goes_on() -> None:
    """A reader that had ended, and now cycles, begins its next pass."""
    mixer = mixer_of([Source("a", 4), Source("b", 400)], shards=1)
    list(islice(mixer, 100))
    resumed = mixer_of([Source("a", 4, on_end="cycle"), Source("b", 400)], shards=1)
    resumed.load_state_dict(mixer.state_dict())
    assert "a" in {item.reader for item in islice(resumed, 20)}


def test_another_number_of_workers_loses_and_doubles_nothing() -> None:
    """The states of a loader's workers merge, and serve any number of workers."""
    loader = batches(mixer_of(ONCE, shards=SHARDS), 2)
    before = list(islice(loader, 7))
    state = saved(merge_states([loader.state_dict()]))
    for workers in (0, 1, 2):
        mixer = mixer_of(ONCE, shards=SHARDS)
        mixer.load_state_dict(state)
        after = list(DataLoader(mixer, batch_size=3, num_workers=workers, collate_fn=as_is))
        items = chain.from_iterable([*before, *after])
        assert sorted(items) == sorted(chain.from_iterable(s.items(SHARDS) for s in ONCE))


def test_a_loader_that_went_on_since_its_snapshot_is_no_state_to_merge() -> None:
    """Items handed out since the workers last said where they stood would be read twice."""
    loader = StatefulDataLoader(
        mixer_of(ONCE, shards=SHARDS), num_workers=1, collate_fn=as_is, snapshot_every_n_steps=5
    )
    list(islice(loader, 3))
    with pytest.raises(StateError, match="snapshot_every_n_steps=1"):
        merge_states([loader.state_dict()])


def test_states_that_do_not_fit_are_refused() -> None:
    """A state that would lose or double items says so when it is loaded, merged or read."""
    one, two = (mixer_of(ONCE, shards=SHARDS, rank=n, world_size=2) for n in range(2))
    states = [one.state_dict(), two.state_dict()]
    with pytest.raises(StateError, match="Make the mixer with seed=0"):
        mixer_of(ONCE, shards=SHARDS, seed=3).load_state_dict(states[0])
    with pytest.raises(StateError, match="Make the mixer with shards=4"):
        mixer_of(ONCE, shards=8).load_state_dict(states[0])
    with pytest.raises(StateError, match="Expected the state of a stream mixer"):
        mixer_of(ONCE).load_state_dict({"epoch": 3})
    alone = mixer_of(ONCE, shards=SHARDS)
    alone.load_state_dict(states[0])
    with pytest.raises(StateError, match=r"without \[1, 3\]. Load `merge_states"):
        iter(alone)
    next(iter(one))
    with pytest.raises(StateError, match="shard 0, got two that differ"):
        merge_states([*states, one.state_dict()])
    with pytest.raises(StateError, match="got different seeds"):
        merge_states([states[0], mixer_of(ONCE, shards=SHARDS, seed=1).state_dict()])
    with pytest.raises(StateError, match="got none"):
        merge_states([])


def read_here(sources: list[Source], context: str | None) -> list[Item]:
    """Read all there is for this rank, in two workers or in this process."""
    mixer = mixer_of(sources, shards=SHARDS)
    loader: DataLoader[Any] = DataLoader(
        mixer,
        batch_size=None,
        num_workers=2 if context else 0,
        multiprocessing_context=context,
        collate_fn=as_is,
    )
    return list(loader)


@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_ranks_share_the_stream(two_ranks: Ranks, context: str | None) -> None:
    """Two ranks read every item once between them, in workers of either kind as well."""
    halves = two_ranks.run(read_here, ONCE, context)
    assert all(halves)
    everything = chain.from_iterable(source.items(SHARDS) for source in ONCE)
    assert sorted(halves[0] + halves[1]) == sorted(everything)
