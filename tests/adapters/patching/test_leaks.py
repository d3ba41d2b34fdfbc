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
    pairs_of,
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
    ({"metrics": []}, "metrics", "non-empty"),
    ({"metrics": ["logprob", "accuracy"]}, "metrics", "a list of some of"),
    ({"method": "attribution", "metrics": ["logprob", "rank"]}, "metrics", "kl for the method"),
    ({"groups": {}}, "groups", "non-empty"),
    ({"groups": {"subject": [99]}}, "groups.subject", "within 0..6, or -7..-1 from the end"),
    ({"groups": {"ends": [3]}, "prompt": [9] * 4, "clean_prompt": [5] * 5}, "groups", "aligned"),
    (
        {
            "source_run": "long",
            "clean_prompt": None,
            "answer_token_id": None,
            "answer": [9] * 4,
            "foil_token_id": None,
        },
        "answer",
        "at most 3 tokens",
    ),
]

GOOD = {"prompt": list(CORRUPT), "clean_prompt": list(CLEAN)}
"""A pair whose source run is captured before the next pair is looked at."""

REFUSED += [
    (
        pairs_of(GOOD, {"prompt": [5] * 7, "source_run": "b"}),
        "pairs[1].source_run",
        "a captured run: ",
    ),
    (
        pairs_of(GOOD, {"prompt": [5] * 7, "source_run": "foreign"}),
        "pairs[1].source_run",
        "a run of",
    ),
    (
        pairs_of(GOOD, {**GOOD, "source_run": "a", "clean_prompt": [5]}),
        "pairs[1].clean_prompt",
        "captured from",
    ),
    (
        pairs_of(GOOD, {**GOOD, "alignment": [{"position": 99, "source_position": 0}]}),
        "pairs[1].alignment",
        "within 0..6",
    ),
    (
        pairs_of(
            {**GOOD, "positions": [2]},
            {
                **GOOD,
                "positions": [2],
                "alignment": [{"position": 1, "source_position": 1}],
            },
        ),
        "pairs[1].positions",
        "aligned",
    ),
    (
        pairs_of(
            {**GOOD, "alignment": [{"position": 0, "source_position": 0}]},
            {**GOOD, "alignment": [{"position": 6, "source_position": 6}]},
        ),
        "pairs",
        "one column at least",
    ),
    (
        pairs_of(GOOD, GOOD, limits={"bytes": 17000}),
        "pairs[1].clean_prompt",
        "at most 17000 bytes",
    ),
    (
        pairs_of(GOOD, GOOD, source="mean", source_runs=["a", "b"]),
        "source_runs",
        "the name of",
    ),
    (pairs_of(GOOD, {"prompt": [5, 6]}), "pairs[1].source_run", "given"),
    (pairs_of(GOOD, {**GOOD, "prompt": [5, 6]}), "pairs[1].positions", "as many as in pairs[0]"),
    (
        pairs_of(
            {"prompt": list(CORRUPT)},
            {"prompt": [5] * 7},
            source="vector",
            vectors=[{"hook": "resid_post", "layer": 0, "values": [1.0]}],
        ),
        "vectors",
        "these hooks",
    ),
]


@pytest.mark.parametrize(("fields", "field", "allowed"), REFUSED)
def test_a_refused_sweep_leaves_nothing_behind(
    fields: dict[str, Any], field: str, allowed: str
) -> None:
    """Whatever it is refused for, bytes and leases are what they were, even with `keep_source`."""
    service = service_of()
    put(service, "a", CLEAN)
    put(service, "long", (5,) * 62)
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


OF_A_KIND: dict[str, dict[str, Any]] = {
    "one prompt": {"source_run": "new"},
    "a preview": {"source_run": "new", "method": "attribution"},
    "pairs": pairs_of(
        {**GOOD, "source_run": "new"}, {"prompt": list(CORRUPT), "source_run": "a"}, GOOD
    ),
    "pairs in groups": pairs_of(
        GOOD, GOOD, groups={"changed": [2, 5], "last": [-1]}, metrics=["kl", "logprob"]
    ),
}
"""Sweeps that capture runs, and one that reads run `a` besides."""

CALLS = {"one prompt": 8, "a preview": 3, "pairs": 10, "pairs in groups": 8}
"""How often the last layer is called at least."""


@pytest.mark.parametrize(
    ("kind", "after"), [(kind, after) for kind, calls in CALLS.items() for after in range(calls)]
)
def test_a_model_that_fails_leaves_nothing_behind(kind: str, after: int) -> None:
    """While it captures, computes baselines, or later; and the next sweep is as if nothing was."""
    service = service_of(chunk_bytes=1 << 12)
    put(service, "a", CLEAN)
    before, expected = footprint(service.store), measured(swept(service))

    repair = failing(service, after=after)
    with pytest.raises(FaultError):
        swept(service, keep_source=True, **OF_A_KIND[kind])
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


@pytest.mark.parametrize(
    ("kind", "batches"),
    [("one prompt", 0), ("one prompt", 1), ("one prompt", 2), ("a preview", 1), ("pairs", 2)],
)
def test_a_sweep_that_is_left_lets_everything_go(kind: str, batches: int) -> None:
    """At its start, or in its midst: memory, leases, and the model's state."""
    service = service_of(chunk_bytes=1 << 12)
    expected = measured(swept(service))
    if kind == "pairs":
        put(service, "a", CLEAN)
    before = footprint(service.store)

    with service.sweep(request_of(keep_source=True, **OF_A_KIND[kind])) as running:
        lease = service.store.lease("new")
        assert lease is not None
        tensor = weakref.ref(lease.run.activations["resid_post"])
        lease.release()
        for _, _ in zip(range(batches), running.batches(), strict=False):
            pass

    assert footprint(service.store) == before
    # Even while somebody holds what is left of the sweep.
    assert running.start.auto_captured
    assert tensor() is None
    assert measured(swept(service)) == expected


@pytest.mark.parametrize(
    ("family", "calls", "pairs"),
    [
        *((family, calls, 1) for family in ("llama", "gpt_neox", "bloom") for calls in (1, 9, 20)),
        *(("llama", calls, 3) for calls in (1, 5, 12, 30)),
    ],
)
def test_an_interrupted_sweep_stops_at_the_next_layer(family: str, calls: int, pairs: int) -> None:
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
        service.sweep(request_of(**pairs_of(*[GOOD] * pairs)), interrupt=interrupt) as running,
    ):
        list(running.batches())
    assert seen <= calls + 1
    for handle in handles:
        handle.remove()

    assert footprint(service.store) == (0, 0, 0, 0)
    assert not any(layer._forward_pre_hooks for layer in service.model.layers)
    assert measured(swept(service)) == expected


def test_a_model_without_gradients_is_refused_a_preview() -> None:
    """As a fault of the request, with the reason; nothing is left behind."""
    service = service_of()
    handle = service.model.layers[1].register_forward_hook(lambda _, __, out: out.detach())
    try:
        with pytest.raises(RequestError, match="no gradient") as caught:
            swept(service, method="attribution", source_run="a", keep_source=True)
    finally:
        handle.remove()

    assert (caught.value.field, caught.value.value) == ("method", "attribution")
    assert footprint(service.store) == (0, 0, 0, 0)


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_that_is_dropped_under_pairs_is_read_to_the_end(*, shared: bool) -> None:
    """Of whichever pair; its memory is freed after the sweep."""
    service = service_of()
    put(service, "a", CLEAN)
    own = {"prompt": list(CORRUPT), "source_run": "a"}
    expected = measured(swept(service_of(), **pairs_of(GOOD, GOOD)))

    with service.sweep(request_of(**pairs_of(own if shared else GOOD, own))) as running:
        assert service.drop("a")
        list(running.batches())
        response = running.summary()

    assert measured(response) == expected
    assert footprint(service.store) == (0, 0, 0, 0)
