from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any, NoReturn

import anyio
import httpx
import pytest
import torch
from starlette.applications import Starlette
from starlette.routing import Mount

from adapters.patching.decoders import CLEAN, CORRUPT, LAYERS, decoder
from adapters.patching.served import (
    fields_of,
    footprint,
    pairs_of,
    patchable,
    serving,
    swept_with_cells,
)
from aegir_adapters.patching.answering import SweepEndpoint
from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.routes import patch_app, patch_routes
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.worker import Worker

PAIR = {"prompt": list(CORRUPT), "clean_prompt": list(CLEAN)}


def refuse_constant(text: str) -> NoReturn:
    """Fail on what Python writes as JSON although it is none."""
    raise AssertionError(f"{text} is not JSON")


def strict(body: str | bytes) -> Any:
    """Return what a strict parser makes of JSON."""
    return json.loads(body, parse_constant=refuse_constant)


def events_of(answer: httpx.Response) -> list[Any]:
    """Return the events of a stream, the last one aside, which says that it is done."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [strict(block.removeprefix("data: ")) for block in blocks[:-2]]


class Server:
    """A server and a client of it."""

    def __init__(self, service: PatchService, http: httpx.Client) -> None:
        self.service = service
        self.http = http

    @property
    def store(self) -> Any:
        """The runs of the server."""
        return self.service.store

    def sweep(self, **fields: Any) -> httpx.Response:
        """Ask for a sweep."""
        return self.http.post("/v1/patch_sweep", json=fields_of(**fields))


def serve(app: Starlette) -> Iterator[Server]:
    """Serve an application to a test."""
    with serving(app) as address, httpx.Client(base_url=address, timeout=60) as http:
        yield Server(app.state.patching, http)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of a tiny model, which every test leaves with an empty store."""
    yield from serve(patch_app(patchable()))


@pytest.fixture
def failing(server: Server) -> Iterator[list[int]]:
    """A model whose last layer fails, once the number in this list has counted down."""
    left = [0]

    def fail(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("no memory")

    handle = server.service.model.layers[-1].register_forward_pre_hook(fail)
    yield left
    handle.remove()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"metric": "recovered", "keep_source": False},
        {"hooks": ["resid_pre", "z"], "metric": "logit_diff"},
        {"prompt": [*CORRUPT, 5], "source_run": "a"},
        {"metrics": ["kl", "logprob"], "hooks": ["z", "resid_post"]},
        {"method": "attribution", "metrics": ["logit_diff", "recovered"]},
        {"groups": {"changed": [2, 5], "last": [-1], "end": [6]}},
        pairs_of(PAIR, PAIR, groups={"changed": [2, 5], "last": [-1]}, metrics=["kl", "logprob"]),
        pairs_of(PAIR, {**PAIR, "prompt": [3, *CORRUPT[1:]]}, hooks=["z"], method="attribution"),
    ],
)
def test_the_summary_of_a_stream_is_the_answer_without_one(
    server: Server, fields: dict[str, Any]
) -> None:
    """And its cells fill the grids, each once."""
    answer = strict(server.sweep(**fields).content)
    start, *cells, summary = events_of(server.sweep(**fields, stream=True))

    assert start["type"] == "start"
    assert {cell["type"] for cell in cells} == {"cell"}
    assert summary.pop("type") == "summary"
    for one in (answer, summary):
        one["elapsed_s"] = None
        for captured in (one, *(one["pair_grids"] or ())):
            if "source_run" not in fields:
                captured["captured_source_run"] = None
    assert summary == answer
    told = ("layers", "positions", "hook", "metric", "clean", "corrupt", "auto_captured")
    for field in (*told, "method", "columns", "column_positions", "tokens", "cells_estimated"):
        assert start[field] == answer[field]
    assert start["metrics"] == fields.get("metrics")
    assert (
        len(start["pairs"] or ()) == len(answer["pair_grids"] or ()) == len(fields.get("pairs", ()))
    )

    assert start["hooks"] == [grid["hook"] for grid in grids_of(answer)]
    owners = answer["pair_grids"] or [answer]
    expected = {
        (pair, grid["hook"], layer, position): value
        for pair, owner in enumerate(owners)
        for grid in grids_of(owner)
        for layer, row in zip(answer["layers"], grid["grid"], strict=True)
        for position, value in zip(answer["positions"], row, strict=True)
    }
    found = {(c.get("pair", 0), c["hook"], c["layer"], c["position"]): c["value"] for c in cells}
    assert found == expected
    assert len(cells) == len(expected) == answer["cells_total"] == start["cells_total"]
    check_cells(cells, fields)


def grids_of(owner: dict[str, Any]) -> list[Any]:
    """Return the grids of an answer, or of one of its pairs."""
    return owner["hook_grids"] or [{"hook": owner["hook"], "grid": owner["grid"]}]


def check_cells(cells: list[Any], fields: dict[str, Any]) -> None:
    """Check what cells say, and that they say nothing that was not asked for."""
    for cell in cells:
        assert ("pair" in cell) == ("pairs" in fields)
        assert ("values" in cell) == ("metrics" in fields)
        if "metrics" in fields:
            assert list(cell["values"]) == fields["metrics"]
            assert cell["values"][fields["metrics"][0]] == cell["value"]
        # What is free is exact, estimates or not.
        estimates = fields.get("method") == "attribution"
        assert cell["estimated"] == (estimates and not cell["free"])
    assert any(cell["estimated"] for cell in cells) == (fields.get("method") == "attribution")


def test_a_stream_has_the_order_of_the_engine(server: Server) -> None:
    """The most promising cells come first."""
    _, *cells, _ = events_of(server.sweep(stream=True))

    _, expected = swept_with_cells(PatchService(patchable()))
    assert [(cell["layer"], cell["position"]) for cell in cells] == [
        (cell.layer, cell.position) for cell in expected
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hooks": []}, "hooks"),
        ({"layers": [LAYERS]}, "layers"),
        ({"metric": "accuracy"}, "metric"),
        ({"source_run": "b", "clean_prompt": None}, "source_run"),
        ({"positions": [{"span": "nowhere"}]}, "positions"),
        ({"prompt": [9] * 3, "positions": [0], "clean_prompt": [5] * 5}, "positions"),
        ({"metrics": ["logprob", 5]}, "metrics"),
        ({"groups": {"a": [99]}}, "groups.a"),
        (pairs_of(PAIR, {"prompt": [5] * 7, "source_run": "b"}), "pairs[1].source_run"),
        (pairs_of(PAIR, {**PAIR, "foil": 5}), "pairs[1].foil"),
    ],
)
def test_a_refusal_is_plain_json(
    server: Server, fields: dict[str, Any], field: str, *, stream: bool
) -> None:
    """Status 400, whether a stream was asked for or not, with field, value and what is allowed."""
    answer = server.sweep(**fields, stream=stream, keep_source=True)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    body = strict(answer.content)
    assert body["field"] == field
    assert body["error"].startswith(f"Expected `{field}` to be {body['allowed']}, got ")
    assert footprint(server.store) == (0, 0, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_model_that_fails_at_the_start_is_a_500(
    server: Server, failing: list[int], after: int, *, stream: bool
) -> None:
    """In plain JSON, and nothing is left behind."""
    failing[0] = after
    answer = server.sweep(stream=stream, keep_source=True, source_run="a")

    assert answer.status_code == 500
    assert strict(answer.content) == {"error": "RuntimeError: no memory"}
    assert footprint(server.store) == (0, 0, 0, 0)


def test_a_model_that_fails_later_ends_the_stream_with_an_error(
    server: Server, failing: list[int]
) -> None:
    """There is no summary, and nothing is left behind."""
    # One call captures; the baselines and the preview take some more before the first chunk.
    failing[0] = 1000
    assert server.sweep().status_code == 200
    failing[0] = 1000 - failing[0] - 1
    answer = server.sweep(stream=True)
    rest = [strict(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]

    assert footprint(server.store) == (0, 0, 0, 0)
    assert rest[-1] == {"type": "error", "error": "no memory"}
    assert "summary" not in {event["type"] for event in rest}


def test_cells_that_are_no_numbers_are_null() -> None:
    """Every JSON parser can read an answer, whatever the model makes of its input."""
    model = patchable("gpt2")
    rows = [{"hook": "resid_post", "layer": 1, "values": [3e38] * model.d_model}]
    with serving(patch_app(model)) as address, httpx.Client(base_url=address, timeout=60) as http:
        fields = fields_of(source="vector", clean_prompt=None, vectors=rows, layers=[1])
        answer = http.post("/v1/patch_sweep", json=fields)
        stream = http.post("/v1/patch_sweep", json={**fields, "stream": True})

    assert None in strict(answer.content)["grid"][0]
    failed = [event for event in events_of(stream) if event.get("error")]
    assert failed
    assert all(event["value"] is None for event in failed)


def test_a_run_is_captured_listed_and_dropped(server: Server) -> None:
    """Whatever its name; a second drop finds nothing."""
    name = "a/b c"
    captured = server.http.post(
        "/v1/patch_source", json={"prompt": list(CLEAN), "source_run": name, "answer_token_id": 7}
    ).json()
    assert captured["source_run"] == name
    assert captured["clean_logprob"] < 0

    runs = strict(server.http.get("/v1/patch_source").content)
    assert [run["run_id"] for run in runs["runs"]] == [name]
    assert runs["statistics"]["listed_bytes"] == captured["size_bytes"]

    address = "/v1/patch_source/a%2Fb%20c"
    dropped, again = server.http.delete(address), server.http.delete(address)
    assert (dropped.status_code, dropped.json()) == (200, {"dropped": True})
    assert again.status_code == 404
    assert "'a/b c' not found" in again.json()["error"]


def test_the_model_and_a_prompt_are_described(server: Server) -> None:
    """What a form needs: hooks, layers, tokens."""
    model = server.http.get("/v1/patch_model").json()
    assert model["num_layers"] == LAYERS
    assert "resid_mid" in model["hooks"]

    tokens = server.http.post(
        "/v1/patch_tokens", json={"prompt": "w5 w6", "positions": [{"span": "w6"}]}
    ).json()
    assert tokens == {"token_ids": [1, 5, 6], "tokens": ["<bos>", "w5", "w6"], "positions": [2]}
    for path in ("/v1/patch_tokens", "/v1/patch_source"):
        assert server.http.post(path, json={"prompt": 5}).json()["field"] == "prompt"


def test_only_own_pages_may_ask(server: Server) -> None:
    """A page of another site cannot make this machine compute, nor drop what it holds."""
    host = server.http.base_url.netloc.decode()
    server.http.post("/v1/patch_source", json={"prompt": list(CLEAN), "source_run": "a"})
    before = footprint(server.store)

    for origin in (
        "http://example.org",
        "null",
        f"http://{host}.example.org",
        "http://127.0.0.1:1",
    ):
        headers = {"origin": origin}
        for answer in (
            server.http.get("/v1/patch_model", headers=headers),
            server.http.post("/v1/patch_sweep", json=fields_of(keep_source=True), headers=headers),
            server.http.delete("/v1/patch_source/a", headers=headers),
        ):
            assert answer.status_code == 403
            assert origin in strict(answer.content)["error"]
    assert footprint(server.store) == before

    other = {"host": "example.org"}
    assert server.http.get("/v1/patch_model", headers=other).status_code == 400
    # A browser says where its page is from; other clients say nothing.
    for own in ({"origin": f"http://{host}"}, {}):
        assert server.http.get("/v1/patch_model", headers=own).status_code == 200
    assert server.http.delete("/v1/patch_source/a").status_code == 200


def test_a_request_that_is_too_large_is_refused() -> None:
    """Before all of it is read."""
    app = patch_app(patchable(), limits=Limits(body_bytes=100))
    with serving(app) as address, httpx.Client(base_url=address) as http:
        for path in ("/v1/patch_sweep", "/v1/patch_tokens"):
            answer = http.post(path, json=fields_of(prompt=[5] * 1000))
            assert answer.status_code == 400
            assert answer.json()["field"] == "body"


def test_the_application_can_be_mounted() -> None:
    """Below any path, with its own answers to failures."""
    app = Starlette(routes=[Mount("/lab", patch_app(patchable()))])
    routes = Starlette(routes=patch_routes(PatchService(patchable())))
    for mounted, path in ((app, "/lab/v1/patch_sweep"), (routes, "/v1/patch_sweep")):
        with serving(mounted) as address:
            answer = httpx.post(f"{address}{path}", json=fields_of(), timeout=60)
        assert len(answer.json()["grid"]) == LAYERS


@pytest.fixture(scope="module")
def large() -> Iterator[Server]:
    """A server of a model with eight layers, which takes seconds for 5,000 cells."""
    model = PatchableModel(decoder("llama", layers=8, max_position_embeddings=256))
    yield from serve(patch_app(model))


def five_thousand(**fields: Any) -> dict[str, Any]:
    """Return the fields of a sweep of 5,040 cells: 5 hooks, 8 layers, 126 positions."""
    prompt = torch.randint(0, 100, (126,), generator=torch.Generator().manual_seed(0)).tolist()
    return fields_of(
        prompt=prompt,
        clean_prompt=[prompt[0], prompt[1] ^ 1, *prompt[2:]],
        hooks=["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"],
        source_run="a",
        keep_source=True,
        **fields,
    )


class Caller:
    """A client on a bare socket."""

    def __init__(self, server: Server, fields: dict[str, Any]) -> None:
        self._socket = socket.create_connection(
            (server.http.base_url.host, server.http.base_url.port)
        )
        body = json.dumps(fields).encode()
        head = f"POST /v1/patch_sweep HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}"
        self._socket.sendall(head.encode() + b"\r\n\r\n" + body)
        self._received = b""

    def until(self, text: bytes) -> float:
        """Read until some text has come; return when it had."""
        while text not in self._received:
            data = self._socket.recv(1 << 16)
            assert data, self._received[-500:]
            self._received += data
        return time.monotonic()

    def leave(self) -> None:
        """Close the socket."""
        self._socket.close()


def test_the_first_cells_come_soon(large: Server) -> None:
    """What costs nothing at once, and what is computed long before the sweep is done."""
    caller = Caller(large, five_thousand(stream=True))
    started = caller.until(b'"type":"start"')
    first = caller.until(b'"type":"cell"') - started
    computed = caller.until(b'"free":false') - started
    caller.leave()
    assert large.store.wait_unused(20)

    print(f"first cell after {1e3 * first:.0f} ms, first computed one {1e3 * computed:.0f} ms")  # noqa: T201
    assert first < 1
    assert computed < 5


@pytest.mark.parametrize(
    ("stream", "until"), [(True, b'"free":false'), (True, b'"type":"start"'), (False, None)]
)
def test_a_client_that_leaves_frees_everything_within_a_second(
    large: Server, until: bytes | None, *, stream: bool
) -> None:
    """In the midst of a stream, at its start, or while it waits for an answer."""
    computing, calls = threading.Event(), count(1)

    def note(*_: Any) -> None:
        # The first call captures the source run, which is leased in all later ones.
        if next(calls) == 2:
            computing.set()

    handle = large.service.model.layers[4].register_forward_pre_hook(note)
    caller = Caller(large, five_thousand(stream=stream))
    assert computing.wait(20)
    if until is not None:
        caller.until(until)

    caller.leave()
    left = time.monotonic()
    assert large.store.wait_unused(20)
    took = time.monotonic() - left
    handle.remove()

    print(f"freed {1e3 * took:.0f} ms after the client had left")  # noqa: T201
    assert took < 1
    assert footprint(large.store) == (0, 0, 0, 0)


@pytest.mark.anyio
async def test_a_client_that_takes_nothing_is_let_go() -> None:
    """After a while, with all that was held for it."""
    service, worker = PatchService(patchable()), Worker()
    endpoint = SweepEndpoint(service, worker, patience_s=0.1)
    body = json.dumps(fields_of(stream=True)).encode()
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if parts:
            return parts.pop()
        return await anyio.sleep_forever()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await anyio.sleep_forever()

    with anyio.fail_after(20):
        await endpoint({"type": "http", "method": "POST", "headers": []}, receive, send)

    assert footprint(service.store) == (0, 0, 0, 0)
