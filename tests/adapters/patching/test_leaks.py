from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from adapters.patching.decoders import CLEAN, CORRUPT, LAYERS
from adapters.patching.served import (
    footprint,
    measured,
    patchable,
    put,
    request_of,
    service_of,
    swept,
)
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.interruption import Interrupted
from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.request import RequestError
from aegir_adapters.patching.service import PatchService


class FaultError(RuntimeError):
    """What a test makes a model raise."""


def failing(service: PatchService, *, after: int = 0) -> Callable[[], None]:
    """Make the model's last layer fail, after so many calls; call what is returned to repair it."""
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise FaultError("no memory")

    return service.model.layers[-1].register_forward_pre_hook(fail).remove


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"source_run": "b", "clean_prompt": None}, "source_run", "the name of a captured run: a"),
    ({"source_run": "a", "clean_prompt": list(CORRUPT)}, "clean_prompt", "was captured from"),
    ({"source_run": "foreign", "clean_prompt": None}, "source_run", "a run of"),
    ({"source": "mean", "clean_prompt": None, "source_runs": ["a", "b"]}, "source_runs", "name"),
    ({"prompt": [9] * 3, "positions": [0], "clean_prompt": [5] * 5}, "positions", "aligned"),
    ({"alignment": [{"position": 99, "source_position": 0}]}, "alignment", "within 0..6"),
    ({"alignment": [{"position": 0, "source_position": 99}]}, "alignment", "within 0..6"),
    ({"limits": {"bytes": 10}}, "clean_prompt", "at most 10 bytes"),
    (
        {
            "source": "vector",
            "clean_prompt": None,
            "vectors": [{"hook": "resid_post", "layer": 0, "values": [1.0]}],
        },
        "vectors",
        "these hooks",
    ),
    (
        {
            "source": "vector",
            "clean_prompt": None,
            "vectors": [{"hook": "nowhere", "layer": 0, "values": [1.0]}],
        },
        "vectors",
        "for one of",
    ),
    ({"metric": "accuracy"}, "metric", "one of"),
    ({"hooks": []}, "hooks", "non-empty"),
]


@pytest.mark.parametrize(("fields", "field", "allowed"), REFUSED)
def test_a_refused_sweep_leaves_nothing_behind(
    fields: dict[str, Any], field: str, allowed: str
) -> None:
    """Whatever it is refused for, bytes and leases are what they were, even with `keep_source`."""
    service = service_of()
    put(service, "a", CLEAN)
    put(service, "foreign", CLEAN)
    foreign = service.store.lease("foreign")
    assert foreign is not None
    other = capture(patchable("gpt2"), CLEAN)
    service.store.put("foreign", other).release()
    foreign.release()
    before = footprint(service.store)

    with pytest.raises(RequestError) as caught:
        swept(service, keep_source=True, **fields)

    assert caught.value.field == field
    assert allowed in caught.value.allowed
    assert footprint(service.store) == before


def test_what_a_capture_would_take_is_refused_with_the_estimate() -> None:
    """A limit on memory is kept before the memory is taken."""
    service = service_of(limits=Limits(bytes=1000))
    size = 6 * LAYERS * len(CLEAN) * service.model.d_model * 4

    with pytest.raises(RequestError, match=f"activations of {size} bytes"):
        swept(service)
    assert footprint(service.store) == (0, 0, 0, 0)


@pytest.mark.parametrize("after", range(8))
def test_a_model_that_fails_leaves_nothing_behind(after: int) -> None:
    """While it captures, computes baselines, or later; and the next sweep is as if nothing was."""
    service = service_of(chunk_bytes=1 << 12)
    put(service, "a", CLEAN)
    before, expected = footprint(service.store), measured(swept(service))

    repair = failing(service, after=after)
    with pytest.raises(FaultError):
        swept(service, source_run="new", keep_source=True)
    repair()

    assert footprint(service.store) == before
    assert measured(swept(service)) == expected


def test_a_sweep_is_left_while_another_computes() -> None:
    """Nobody has to wait for the other's chunk to let go of his own."""
    service = service_of()
    computing, go_on = threading.Event(), threading.Event()

    def block(*_: Any) -> None:
        computing.set()
        assert go_on.wait(20)

    with service.sweep(request_of(source_run="a")):
        handle = service.model.layers[0].register_forward_pre_hook(block)
        other = threading.Thread(target=swept, args=(service,), kwargs={"source_run": "b"})
        other.start()
        assert computing.wait(20)

    assert footprint(service.store) == (0, 0, 0, 0)
    go_on.set()
    other.join()
    handle.remove()


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_sweep_that_is_left_lets_everything_go(batches: int) -> None:
    """At its start, or in its midst: memory, leases, and the model's state."""
    service = service_of(chunk_bytes=1 << 12)
    expected = measured(swept(service))

    with service.sweep(request_of(source_run="a", keep_source=True)) as running:
        lease = service.store.lease("a")
        assert lease is not None
        tensor = weakref.ref(lease.run.activations["resid_post"])
        lease.release()
        for _, _ in zip(range(batches), running.batches(), strict=False):
            pass

    assert footprint(service.store) == (0, 0, 0, 0)
    # Even while somebody holds what is left of the sweep.
    assert running.start.auto_captured
    assert tensor() is None
    assert measured(swept(service)) == expected


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bloom"])
@pytest.mark.parametrize("calls", [1, 9, 20])
def test_an_interrupted_sweep_stops_at_the_next_layer(family: str, calls: int) -> None:
    """In whatever it computes, with either engine; nothing is left behind, and no hook stays."""
    service = service_of(model=patchable(family), chunk_bytes=1 << 12)
    expected = measured(swept(service))
    interrupt, seen = threading.Event(), 0

    def note(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == calls:
            interrupt.set()

    handles = [layer.register_forward_pre_hook(note) for layer in service.model.layers]
    with (
        pytest.raises(Interrupted),
        service.sweep(request_of(), interrupt=interrupt) as running,
    ):
        list(running.batches())
    assert seen <= calls + 1
    for handle in handles:
        handle.remove()

    assert footprint(service.store) == (0, 0, 0, 0)
    assert not any(layer._forward_pre_hooks for layer in service.model.layers)
    assert measured(swept(service)) == expected
