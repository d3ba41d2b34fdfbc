"""Everything that can happen once, tried at every place where it can happen."""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aegir_stream.testing import Fault, Killed, SimulatedMachine
from core.simulated import RECORDED, SimulatedRun, check_survivors

NEEDS_SPACE = frozenset({"open", "write", "mkdir", "link", "rename"})
AGAIN = {
    "open": errno.EIO,
    "mkdir": errno.EEXIST,
    "link": errno.EEXIST,
    "rename": errno.ENOENT,
    "unlink": errno.ENOENT,
}
"""What a call says when it is made once more by a client that got no answer."""


def live(run: SimulatedRun, between: Callable[[], object] = lambda: None) -> None:
    """Live through two attempts with checkpoints and a resume; call `between` now and then."""
    run.begin()
    run.take_step()
    between()
    run.save()
    run.take_step()
    between()
    run.save()
    run.take_step()
    run.close()
    between()
    run.begin("checkpoint-1")
    run.take_step()
    run.take_step()
    between()
    run.save()
    run.take_step()
    run.close()


def go_on(run: SimulatedRun) -> None:
    """Resume from the last checkpoint there is, and end well."""
    run.machine.mend()
    run.resume()
    run.take_step()
    run.close()
    assert run.machine.descriptors == []


@functools.cache
def calls_of(**options: str) -> tuple[str, ...]:
    """Return the kinds of the system calls of that life, in order."""
    machine = SimulatedMachine()
    live(SimulatedRun(machine, **options))
    return tuple(call.kind for call in machine.calls)


def places(*kinds: str, **options: str) -> Iterator[int]:
    """Yield the numbers of all calls of some kinds."""
    return (n for n, kind in enumerate(calls_of(**options)) if not kinds or kind in kinds)


@contextlib.contextmanager
def at(place: int, what: object) -> Iterator[None]:
    """Name the place where a campaign fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"What happened at {place}: {what}")
        raise


def lived(fault: Fault, **options: str) -> SimulatedRun:
    """Let a fault happen to a run, mend what lasts at the next occasion, and go on."""
    machine = SimulatedMachine()
    machine.fail(fault)
    run = SimulatedRun(machine, **options)
    try:
        live(run, lambda: machine.mend() if len(machine.calls) > fault.first else None)
    except Killed:
        assert fault.meanwhile
    go_on(run)
    return run


def check_books(run: SimulatedRun, *, mended: bool = True) -> None:
    """Check that every record was delivered once or reported lost, by recorder and log alike.

    What was lost in an attempt that ended before the disk was `mended` the log cannot tell.
    """
    found = run.read()
    for attempt in run.attempts:
        assert found.of(attempt) == attempt.written()
        assert attempt.written() + attempt.dropped() == attempt.count()
    lost = sum(attempt.dropped() for attempt in run.attempts)
    untold = 0 if mended else sum(attempt.dropped() for attempt in run.attempts[:2])
    assert lost - untold <= found.lost() <= lost
    check_survivors(run, found)


def test_any_call_may_fail() -> None:
    """No error escapes, no file stays open, and every record is delivered or reported lost."""
    for place in places():
        with at(place, errno.EIO):
            run = lived(Fault(error=errno.EIO, first=place))
            check_books(run)
            left_behind = [path for path in run.machine.files() if path.suffix == ".tmp"]
            assert len(left_behind) <= (calls_of()[place] == "unlink"), left_behind


def test_all_calls_may_fail_for_a_while() -> None:
    """So it is while nothing works at all."""
    for place in [*places()][::2]:
        with at(place, errno.EIO):
            fault = Fault(error=errno.EIO, first=place, times=None)
            check_books(lived(fault), mended=False)


def test_the_disk_may_be_full_for_a_while() -> None:
    """So it is when whatever needs space fails, from any call on."""
    for place in places(*NEEDS_SPACE):
        error = (errno.ENOSPC, errno.EDQUOT)[place % 2]
        with at(place, error):
            fault = Fault(error=error, kinds=NEEDS_SPACE, first=place, times=None)
            check_books(lived(fault), mended=False)


def test_the_disk_may_have_any_room_left() -> None:
    """Wherever a line is cut, be it a record or a word about lost ones, it is completed once."""
    for room in range(0, 900, 3):
        with at(room, "a disk with so many bytes left"):
            machine = SimulatedMachine()
            run = SimulatedRun(machine)
            run.begin()
            for more in (0, room, room):
                machine.capacity_bytes = machine.used_bytes() + more
                run.take_step()
                run.now.recorder.flush()
            machine.mend()
            run.take_step()
            run.close()
            found = run.read()
            assert found.of(run.now) == run.now.written()
            assert found.lost() == run.now.dropped()


def test_any_write_may_be_short() -> None:
    """What was not taken is written next: nothing is lost."""
    for place in places("write"):
        with at(place, "a short write"):
            run = lived(Fault(first=place, taken=(1, 60)[place % 2]))
            check_books(run)
            assert sum(attempt.dropped() for attempt in run.attempts) == 0


def test_any_answer_may_be_lost() -> None:
    """What a server has done and told nobody is done again without harm."""
    for place in places(*AGAIN):
        with at(place, "a lost answer"):
            error = (errno.EIO, AGAIN[calls_of()[place]])[place % 2]
            check_books(lived(Fault(error=error, first=place, done=True)))


def struck(run: SimulatedRun, *faults: Fault) -> None:
    """Let what ends all processes happen to a run, and go on."""
    for fault in faults:
        run.machine.fail(fault)
    with pytest.raises(Killed):
        live(run)
    run.machine.mend()
    go_on(run)


def test_a_process_may_be_killed_at_any_call() -> None:
    """Whatever was written is there, and a replay finds what the resume left standing."""
    for place in places():
        with at(place, "a kill"):
            check_after_kill(place)


def test_a_process_may_be_killed_in_the_middle_of_any_write() -> None:
    """The line that was cut costs itself only."""
    for place in places("write"):
        with at(place, "a kill in the middle of a write"):
            check_after_kill(place + 1, Fault(first=place, taken=(1, 60)[place % 2]))


def check_after_kill(place: int, *before: Fault) -> None:
    """Kill the process at a call; check what was written before and after."""
    run = SimulatedRun(SimulatedMachine())
    struck(run, *before, Fault(first=place, meanwhile=run.kill))
    found = run.read()
    for attempt in run.attempts:
        assert attempt.written() <= found.of(attempt) <= attempt.count()
    assert found.of(run.now) == run.now.count()
    check_survivors(run, found)


def half(least: int, most: int) -> int:
    """Keep half of what may be lost."""
    return (least + most) // 2


def nearly(least: int, most: int) -> int:
    """Lose a little."""
    return most - 1 - most % 3


CUTS: list[dict[str, Any]] = [
    {"choose": min},
    {"choose": min, "names": max, "keeps_sizes": True},
    {"choose": min, "names": nearly},
    {"choose": half},
    {"choose": half, "keeps_sizes": True},
    {"choose": nearly, "keeps_sizes": True},
    {"choose": max, "names": half},
]


@pytest.mark.parametrize("pessimal", [True, False])
def test_what_was_synced_survives_a_power_cut_at_any_call(*, pessimal: bool) -> None:
    """What a checkpoint was said to cover is there, and the log goes on from it."""
    for place in places(durability="checkpoint"):
        cut = CUTS[0 if pessimal else 1 + place % (len(CUTS) - 1)]
        with at(place, cut):
            run = after_power_cut(place, cut, durability="checkpoint")
            check_survivors(run, run.read())
            if run.now.continues in run.sealed:
                assert all(run.survivors(name) == run.surviving[name] for name in RECORDED)


def test_without_syncing_a_log_goes_on_after_a_power_cut_at_any_call() -> None:
    """Anything may be lost, but nothing is invented, doubled or reordered."""
    for place in places():
        cut = CUTS[place % len(CUTS)]
        with at(place, cut):
            after_power_cut(place, cut, durability="os")


def after_power_cut(place: int, cut: dict[str, Any], *, durability: str) -> SimulatedRun:
    """Cut the power at a call and go on; check that all is there that was written since."""
    machine = SimulatedMachine()
    run = SimulatedRun(machine, durability=durability)
    struck(run, Fault(first=place, meanwhile=functools.partial(machine.power_cut, **cut)))
    assert run.read().of(run.now) == run.now.count()
    return run
