from __future__ import annotations

import random
import threading
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from adapters.patching.served import footprint, run_of
from aegir_adapters.patching.store import Lease, LeaseEndedError, RunStore
from aegir_stream.testing import ManualClock


def listed(store: RunStore) -> list[str]:
    """Return the names of listed runs, the least recently used first."""
    return [manifest.run_id for manifest in store.manifests()]


def test_a_listed_run_can_be_leased_and_an_unlisted_one_cannot() -> None:
    """Whoever asks for a run gets a lease of the very run, or nothing."""
    store, run = RunStore(), run_of(10)
    store.put("a", run).release()

    with store.lease("a") as lease:  # type: ignore[union-attr]
        assert lease.run is run
    assert store.lease("b") is None
    assert (store.statistics().hits, store.statistics().misses) == (1, 1)


def test_the_least_recently_used_run_is_evicted() -> None:
    """Reading a run is using it."""
    store = RunStore(budget_bytes=30)
    for name in ("a", "b", "c"):
        store.put(name, run_of(10)).release()
    store.lease("a").release()  # type: ignore[union-attr]

    store.put("d", run_of(10)).release()

    assert listed(store) == ["c", "a", "d"]
    assert store.statistics().evicted == 1


def test_a_leased_run_is_never_evicted() -> None:
    """Leased runs exceed the budget together, until one of them is released."""
    store = RunStore(budget_bytes=15)
    a, b = store.put("a", run_of(10)), store.put("b", run_of(10))
    assert listed(store) == ["a", "b"]

    a.release()

    assert listed(store) == ["b"]
    b.release()
    assert listed(store) == ["b"]


def test_a_single_run_larger_than_the_budget_is_kept() -> None:
    """Otherwise it could never be swept twice."""
    store = RunStore(budget_bytes=5)
    store.put("a", run_of(10)).release()
    assert listed(store) == ["a"]

    store.put("b", run_of(20)).release()
    assert listed(store) == ["b"]


def test_a_run_is_dropped_once() -> None:
    """The second drop tells that there was nothing."""
    store = RunStore()
    store.put("a", run_of(10)).release()

    assert store.drop("a")
    assert not store.drop("a")
    assert footprint(store) == (0, 0, 0, 0)


def test_a_drop_succeeds_despite_a_lease() -> None:
    """The run is gone from the list, its reader reads on, and its memory is freed after that."""
    store = RunStore()
    run = run_of(10)
    tensor = weakref.ref(run.activations["resid_post"])
    lease = store.put("a", run)
    del run

    assert store.drop("a")

    assert store.lease("a") is None
    assert footprint(store) == (0, 1, 0, 10)
    assert lease.run.size_bytes == 10
    lease.release()
    assert tensor() is None
    assert footprint(store) == (0, 0, 0, 0)


def test_a_released_lease_reads_nothing() -> None:
    """A run that may be gone is not handed out, and a second release does nothing."""
    lease = RunStore().put("a", run_of(10))
    lease.release()
    lease.release()

    with pytest.raises(LeaseEndedError, match="'a'"):
        lease.run  # noqa: B018 - reading is what fails


def test_a_new_run_of_the_same_name_takes_the_place_of_the_old() -> None:
    """Readers of the old one keep it; new readers get the new one."""
    store = RunStore()
    old = store.put("a", run_of(10))
    new = store.put("a", run_of(20))

    assert (old.run.size_bytes, new.run.size_bytes) == (10, 20)
    assert footprint(store) == (1, 2, 20, 10)
    old.release()
    assert footprint(store) == (1, 1, 20, 0)


def test_a_lease_puts_another_run_in_the_place_of_its_own() -> None:
    """Others read the old one to the end, and a run that was dropped is not listed again."""
    store = RunStore()
    mine = store.put("a", run_of(10))
    other = store.lease("a")
    assert other is not None

    mine.replace(run_of(20))
    assert (mine.run.size_bytes, other.run.size_bytes) == (20, 10)
    assert footprint(store) == (1, 2, 20, 10)

    store.drop("a")
    mine.replace(run_of(30))
    other.release()
    assert footprint(store) == (0, 1, 0, 30)
    mine.release()
    assert footprint(store) == (0, 0, 0, 0)


def test_a_transient_run_goes_with_its_last_lease() -> None:
    """Whoever has captured it may be done before others are who have found it."""
    store = RunStore()
    first = store.put("a", run_of(10), transient=True)
    second = store.lease("a")
    assert second is not None

    first.release()
    assert listed(store) == ["a"]
    second.release()
    assert listed(store) == []
    assert store.statistics().dropped == 1


def test_a_transient_run_takes_no_other_of_its_name_along() -> None:
    """One that has taken its place in the meantime stays."""
    store = RunStore()
    old = store.put("a", run_of(10), transient=True)
    store.put("a", run_of(20)).release()

    old.release()

    assert footprint(store) == (1, 0, 20, 0)


def test_a_transient_run_stays_if_any_reader_keeps_it() -> None:
    """One who wants to keep it is enough."""
    store = RunStore()
    first = store.put("a", run_of(10), transient=True)
    second = store.lease("a")
    assert second is not None

    second.keep()
    second.release()
    first.release()

    assert listed(store) == ["a"]


def test_a_lease_that_nobody_renews_expires() -> None:
    """Its run can be evicted, or goes if it is transient; a renewed one is held on to."""
    clock = ManualClock()
    store = RunStore(lease_ttl_s=300, clock=clock)
    dead, alive = store.put("a", run_of(10), transient=True), store.put("b", run_of(10))

    clock.advance(299)
    alive.renew()
    clock.advance(1)

    assert listed(store) == ["b"]
    assert store.statistics().leases == 1
    assert store.statistics().expired == 1
    dead.release()


def test_a_lease_that_comes_back_from_the_dead_is_counted() -> None:
    """Its run is in memory, listed or not."""
    clock = ManualClock()
    store = RunStore(lease_ttl_s=300, clock=clock)
    lease = store.put("a", run_of(10), transient=True)
    clock.advance(300)
    assert footprint(store) == (0, 0, 0, 0)

    lease.renew()

    assert footprint(store) == (0, 1, 0, 10)
    lease.release()
    assert footprint(store) == (0, 0, 0, 0)


def test_a_manifest_tells_what_a_run_holds() -> None:
    """Without using it."""
    store = RunStore()
    store.put("a", run_of(10)).release()
    store.put("b", run_of(5)).release()

    manifest = store.manifest("a")

    assert manifest is not None
    assert (manifest.run_id, manifest.size_bytes, manifest.leases) == ("a", 10, 0)
    assert (manifest.num_prompt_tokens, manifest.sites) == (3, ("resid_post",))
    assert manifest.dtype == "uint8"
    assert store.manifest("c") is None
    assert listed(store) == ["a", "b"]


def test_clearing_unlists_all_runs() -> None:
    """Whoever reads one goes on."""
    store = RunStore()
    lease = store.put("a", run_of(10))
    store.put("b", run_of(10)).release()

    assert store.clear() == 2
    assert footprint(store) == (0, 1, 0, 10)
    lease.release()


def test_waiting_ends_with_the_last_lease() -> None:
    """Or when its time is over."""
    store = RunStore()
    lease = store.put("a", run_of(10))
    assert not store.wait_unused(0)

    thread = threading.Thread(target=lease.release)
    thread.start()

    assert store.wait_unused(10)
    thread.join()


def test_threads_share_a_store() -> None:
    """Nothing is lost or counted twice, whatever they do at the same time."""
    store = RunStore(budget_bytes=50)
    failures: list[Exception] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)  # noqa: S311 - no secret
        try:
            for _ in range(300):
                name = draw.choice("abcde")
                lease = store.lease(name) or store.put(
                    name, run_of(10), transient=draw.random() < 0.5
                )
                if draw.random() < 0.2:
                    store.drop(name)
                assert lease.run.size_bytes == 10
                lease.release()
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    now = store.statistics()
    assert (now.leases, now.lingering_bytes) == (0, 0)
    assert now.listed_bytes == 10 * now.runs <= 50


class StoreMachine(RuleBasedStateMachine):
    """Whatever is done to a store, leases are kept and the books are right."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.store = RunStore(budget_bytes=100, lease_ttl_s=10, clock=self.clock)
        self.held: dict[Lease, float] = {}
        self.sizes: dict[Lease, int] = {}
        self.dropped: set[str] = set()
        self.transient: dict[str, bool] = {}

    @rule(
        target=leases,
        name=st.sampled_from("abcd"),
        size=st.integers(1, 120),
        transient=st.booleans(),
    )
    def put(self, name: str, size: int, transient: bool) -> Lease:  # noqa: FBT001
        """A run that was just put is listed, however large it is."""
        lease = self.store.put(name, run_of(size), transient=transient)
        self.transient[name] = transient
        assert self.store.manifest(name) is not None
        return self.hold(lease, size)

    @rule(target=leases, name=st.sampled_from("abcd"))
    def take(self, name: str) -> Lease | None:
        """A lease is given exactly if the run is listed."""
        manifest = self.store.manifest(name)
        lease = self.store.lease(name)
        assert (lease is None) == (manifest is None)
        if lease is None or manifest is None:
            return None
        return self.hold(lease, manifest.size_bytes)

    @rule(lease=consumes(leases))
    def release(self, lease: Lease | None) -> None:
        """A released lease counts no more."""
        if lease is not None:
            lease.release()
            del self.held[lease]

    @rule(lease=leases)
    def renew(self, lease: Lease | None) -> None:
        """A renewed lease lasts its whole time again."""
        if lease is not None:
            lease.renew()
            self.held[lease] = self.clock.now + 10

    @rule(lease=leases)
    def keep(self, lease: Lease | None) -> None:
        """A run that is kept is transient no more."""
        if lease is not None:
            lease.keep()

    @rule(name=st.sampled_from("abcd"))
    def drop(self, name: str) -> None:
        """A drop succeeds exactly if the run is listed."""
        was_listed = name in listed(self.store)
        assert self.store.drop(name) == was_listed
        assert name not in listed(self.store)

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    def hold(self, lease: Lease, size: int) -> Lease:
        """Remember a lease."""
        self.held[lease] = self.clock.now + 10
        self.sizes[lease] = size
        return lease

    def living(self) -> list[Lease]:
        """Return the leases that have not expired."""
        return [lease for lease, deadline in self.held.items() if deadline > self.clock.now]

    @invariant()
    def every_lease_reads_its_run(self) -> None:
        """Whatever was dropped, replaced or evicted meanwhile."""
        for lease in self.held:
            assert lease.run.size_bytes == self.sizes[lease]

    @invariant()
    def the_books_are_right(self) -> None:
        """Leases and bytes are what they are counted as."""
        now = self.store.statistics()
        assert now.leases == len(self.living())
        assert now.listed_bytes == sum(m.size_bytes for m in self.store.manifests())
        shown = {id(lease.run): lease.run.size_bytes for lease in self.living()}
        assert now.lingering_bytes <= sum(shown.values()) <= now.lingering_bytes + now.listed_bytes

    @invariant()
    def only_what_cannot_be_evicted_exceeds_the_budget(self) -> None:
        """Leased runs, and the one used last."""
        *others, _ = self.store.manifests() or (None,)
        now = self.store.statistics()
        if now.listed_bytes + now.lingering_bytes > now.budget_bytes:
            assert all(manifest.leases for manifest in others)

    @invariant()
    def transient_runs_are_leased(self) -> None:
        """A transient run without a lease would stay for ever."""
        assert all(m.leases for m in self.store.manifests() if m.transient)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
