"""The pages of a run's sweeps, on a real connection."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
import msgspec
import pytest

from adapters.web.conftest import Client
from aegir_adapters.web import BusyError, Starting, SweepOrder, create_app
from aegir_stream import codec
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import (
    SweepCell,
    SweepEnded,
    SweepPair,
    SweepStarted,
    SweptLatent,
)
from aegir_stream.sweep_log import SweepLog

pytestmark = pytest.mark.anyio

STARTED = SweepStarted(
    model="checkpoint-4",
    tokens=("41", "<b>62</b>", "=>"),
    clean_tokens=("41", "20", "=>"),
    clean_positions=(0, 1, 2),
    hooks=("resid_pre", "mlp_out"),
    layers=(0, 1),
    positions=(0, 1, 2),
    metric="recovered",
    answer="SPACE",
    unpatched=0.0,
    restored=1.0,
    cells=12,
)
CELLS = [
    SweepCell(hook=hook, layer=layer, position=at, value=layer / 2 + at / 10)
    for hook in STARTED.hooks
    for layer in (0, 1)
    for at in (0, 1, 2)
]
ORDER = {
    "checkpoint": "latest",
    "prompt": "41 62 =>",
    "clean_prompt": "41 20 =>",
    "answer": "SPACE",
    "foil": "",
    "hooks": "resid_pre",
    "layers": "all",
    "positions": "all",
    "metric": "",
}


class Starter:
    """Notes what it was asked for."""

    def __init__(self) -> None:
        self.refused: str | None = None
        self.orders: list[tuple[Path, SweepOrder]] = []
        self.stopped: list[Path] = []
        self.made: Starting | None = None

    def refusal(self) -> str | None:
        """Return what the test says."""
        return self.refused

    def start(self, run: RunDirectory, order: SweepOrder) -> None:
        """Note an order, one at a time."""
        if self.made and self.made.running:
            raise BusyError("A sweep of this run is being made")
        self.orders.append((run.root, order))
        self.made = Starting(order=order, running=True)

    def look(self, run: RunDirectory) -> Starting | None:
        """Return what the test says."""
        return self.made

    def stop(self, run: RunDirectory) -> None:
        """Note it."""
        self.stopped.append(run.root)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run with a checkpoint."""
    root = tmp_path / "run"
    (root / "checkpoint-4").mkdir(parents=True)
    return RunDirectory.at(root)


@pytest.fixture
def starter() -> Starter:
    """A starter."""
    return Starter()


@pytest.fixture
async def client(directory: RunDirectory, starter: Starter, connect: Any) -> AsyncIterator[Client]:
    """A client of a server that shows the run and may start sweeps."""
    async with connect(create_app(directory.cfg, sweep_starter=starter)) as client:
        yield client


def record(run: RunDirectory, *, cells: int = 12) -> SweepLog:
    """Record a sweep that came to its end."""
    with SweepLog(run, STARTED) as log:
        log.append(CELLS[:cells])
        log.end(SweepEnded(status="finished", noise_floor=1e-6, elapsed_s=0.5))
    return log


# -- pages -----------------------------------------------------------------------------------------


async def test_a_run_links_to_its_sweeps(client: Client, directory: RunDirectory) -> None:
    """From its first page and from its viewer, at both places where its pages are."""
    first = (await client.http.get("/")).text
    assert 'href="sweeps"' in first
    viewer = (await client.http.get("/setup/run/run/0")).text
    address = re.findall(r'href="([^"]*sweeps)"', viewer)
    assert address == ["0/sae/sweeps"]
    record(directory)
    for root in ("", "/setup/run/run/0/sae"):
        listed = await client.http.get(f"{root}/sweeps")
        assert listed.status_code == 200
        assert 'href="sweeps/00001"' in listed.text
        one = await client.http.get(f"{root}/sweeps/00001")
        assert one.status_code == 200
        assert 'href="../static/page.css"' in one.text


async def test_a_run_without_models_has_no_link(tmp_path: Path, connect: Any) -> None:
    """There is nothing to sweep; the page says so."""
    async with connect(create_app(tmp_path / "none", sweep_starter=Starter())) as client:
        assert 'href="sweeps"' not in (await client.http.get("/")).text
        page = (await client.http.get("/sweeps")).text
        assert "There is no sweep of this run yet." in page
        assert "The run has no checkpoint yet." in page


async def test_the_list_and_its_twin_say_the_same(client: Client, directory: RunDirectory) -> None:
    """Newest first, each with its status, its size and its best cells."""
    record(directory)
    with SweepLog(directory, STARTED) as log:
        log.append(CELLS[:5])
        told = (await client.http.get("/sweeps.json")).json()
        page = (await client.http.get("/sweeps")).text
    newest, oldest = told["sweeps"]
    assert (newest["sweep"], newest["status"], newest["cells"], newest["of"]) == (
        "00002",
        "running",
        5,
        12,
    )
    assert (oldest["status"], len(oldest["best"])) == ("finished", 2)
    assert told["checkpoints"] == ["checkpoint-4"]
    assert page.index("00002") < page.index("00001")
    assert "checkpoint-4: recovered of SPACE" in page


async def test_one_sweep_and_its_twin(client: Client, directory: RunDirectory) -> None:
    """The page draws each grid; the twin holds what was recorded. Text of a model is escaped."""
    log = record(directory)
    page = (await client.http.get("/sweeps/00001")).text
    assert page.count('class="heat" width') == 2
    assert page.count("<rect id=") == 12 + 2
    assert "<b>62" not in page
    assert "&lt;b&gt;62" in page
    assert "data-stream" not in page
    twin = (await client.http.get("/sweeps/00001.json")).json()
    assert (twin["sweep"], twin["status"], twin["skipped_lines"]) == ("00001", "finished", 0)
    assert twin["started"] == json.loads(codec.encode(log.started))
    assert twin["cells"] == [json.loads(codec.encode(cell)) for cell in CELLS]
    assert twin["ended"]["noise_floor"] == 1e-6


PAIRED = SweepStarted(
    model="checkpoint-4",
    tokens=("41", "62", "=>"),
    hooks=("resid_pre",),
    layers=(0, 1),
    positions=(0, 1),
    columns=("subject", "last"),
    metric="logprob",
    pairs=(
        SweepPair(
            tokens=("41", "62", "=>"),
            positions=((0, 1), (2,)),
            clean_tokens=("41", "20", "=>"),
            clean_positions=((0, 1), (2,)),
            answer="SPACE",
            unpatched=-4.0,
            restored=-1.0,
        ),
        SweepPair(
            tokens=("7a", "=>"),
            positions=((0,), (1,)),
            clean_tokens=("20", "=>"),
            clean_positions=((0,), (1,)),
            answer="<DIGIT>",
            unpatched=-2.0,
            restored=-1.0,
        ),
    ),
    unpatched=-4.0,
    restored=-1.0,
    cells=8,
)
PAIRED_CELLS = [
    SweepCell(hook="resid_pre", layer=layer, position=at, pair=pair, value=-3.0 + layer + pair)
    for layer in (0, 1)
    for at in (0, 1)
    for pair in (0, 1)
]


async def test_pairs_are_shown_together_and_alone(client: Client, directory: RunDirectory) -> None:
    """The mean first; each pair has a page of its own, whose columns have the same names."""
    with SweepLog(directory, PAIRED) as log:
        log.append(PAIRED_CELLS)
        log.end(SweepEnded(status="finished"))
    page = (await client.http.get("/sweeps/00001")).text
    assert "logprob of SPACE, &lt;DIGIT&gt;, mean of 2 pairs" in page
    assert '<strong aria-current="true">Mean of 2 pairs</strong>' in page
    assert '<a href="00001?pair=1">Pair 1: &lt;DIGIT&gt;</a>' in page
    assert "Patched prompt of the first pair" in page
    assert "<strong>subject</strong> positions 0, 1; <strong>last</strong> position 2." in page
    assert "layer 1, subject at 0, 1" in page
    assert "8 of 8" in page
    alone = (await client.http.get("/sweeps/00001?pair=1")).text
    assert '<a href="00001">Mean of 2 pairs</a>' in alone
    assert '<strong aria-current="true">Pair 1: &lt;DIGIT&gt;</strong>' in alone
    assert "4 of 4" in alone
    assert ">7a<" in alone
    assert ": -1<" in alone
    assert ": -1.5<" in page
    for odd in ("2", "99999"):
        assert (await client.http.get(f"/sweeps/00001?pair={odd}")).status_code == 404
    assert (await client.http.get("/sweeps/00001?pair=x")).text.count("Mean of 2 pairs</strong>")
    row = (await client.http.get("/sweeps.json")).json()["sweeps"][0]
    assert (row["pairs"], row["most"]) == (2, ["resid_pre: layer 1, subject"])


async def test_a_pair_fills_while_it_is_looked_at(client: Client, directory: RunDirectory) -> None:
    """A cell of the mean is there when all pairs have it, that of a pair at once."""
    with SweepLog(directory, PAIRED) as log:
        log.append(PAIRED_CELLS[:1])
        assert "stream?drawn&amp;pair=0" in (await client.http.get("/sweeps/00001?pair=0")).text
        async with (
            client.open("/sweeps/00001/stream?drawn") as mean,
            client.open("/sweeps/00001/stream?drawn&pair=0") as first,
            client.open("/sweeps/00001/stream?drawn&pair=1") as second,
        ):
            assert (await mean.next()).body["marks"] == {}
            assert list((await first.next()).body["marks"]) == ["h0-0-0"]
            assert (await second.next()).body["marks"] == {}
            log.append(PAIRED_CELLS[1:2])
            assert list((await mean.next()).body["marks"]) == ["h0-0-0"]
            assert list((await second.next()).body["marks"]) == ["h0-0-0"]


async def test_a_latent_is_named_and_where_it_fires(
    client: Client, directory: RunDirectory
) -> None:
    """What is done to it, and its activation beside each token at which it has one."""
    started = SweepStarted(
        model="checkpoint-4",
        tokens=("41", "62", "=>"),
        hooks=("resid_post",),
        layers=(2,),
        positions=(0, 1, 2),
        metric="logprob",
        answer="SPACE",
        source="latent",
        latent=SweptLatent(layer=2, index=448, sae="sae/layer-2", activations=(0.0, 1.5, 0.0)),
        unpatched=-1.0,
        cells=3,
    )
    with SweepLog(directory, started) as log:
        log.append(
            SweepCell(hook="resid_post", layer=2, position=at, value=-1.0 - at) for at in range(3)
        )
        log.end(SweepEnded(status="finished"))
    page = (await client.http.get("/sweeps/00001")).text
    assert "logprob of SPACE, latent 2:448 ablated" in page
    assert "Latent 448 of layer 2, ablated; it fires 1.5 at position 1." in page
    assert "<sub>1.5</sub>" in page
    assert "least at layer 2, position 2 &#39;=&gt;&#39;: -3" in page.replace("&#x27;", "&#39;")


async def test_estimates_are_told_from_what_was_computed(
    client: Client, directory: RunDirectory
) -> None:
    """On the page, in the list, and at each cell."""
    started = msgspec.structs.replace(STARTED, method="attribution", estimated=12)
    with SweepLog(directory, started) as log:
        log.append(CELLS)
        log.end(SweepEnded(status="finished"))
    page = (await client.http.get("/sweeps/00001")).text
    assert '<span class="badge quiet">estimated</span>' in page
    assert "Estimated from one gradient, to first order" in page
    assert page.count(", estimated</title>") == 12
    assert ", estimated<" in (await client.http.get("/sweeps")).text
    record(directory)
    assert "estimated" not in (await client.http.get("/sweeps/00002")).text


@pytest.mark.parametrize("name", ["00002", "1", "..%2f00001", "00001.jsonl", "00001%00"])
@pytest.mark.parametrize("suffix", ["", ".json", "/stream"])
async def test_a_sweep_that_is_not_there(
    client: Client, directory: RunDirectory, name: str, suffix: str
) -> None:
    """Names are looked up and never joined into paths."""
    record(directory)
    assert (await client.http.get(f"/sweeps/{name}{suffix}")).status_code == 404


async def test_a_sweep_whose_process_is_gone(client: Client, directory: RunDirectory) -> None:
    """It is told from one that goes on, and shows what it computed."""
    directory.sweeps_path.mkdir()
    dead = SweepLog(directory, STARTED)
    dead.append(CELLS[:3])
    lines = directory.sweeps()[0].path.read_bytes()
    dead.end(SweepEnded(status="finished"))
    gone = lines.replace(b'"pid":', b'"pid":4000000,"was":')
    directory.sweeps()[0].path.write_bytes(gone)
    page = (await client.http.get("/sweeps/00001")).text
    assert ">died</span>" in page
    assert "Its process is gone and left no end." in page
    async with client.open("/sweeps/00001/stream") as stream:
        events = await stream.rest()
    assert [event.name for event in events] == ["start", "cell", "cell", "cell", "status"]
    assert events[-1].body == {"status": "died"}


# -- streams ---------------------------------------------------------------------------------------


async def test_the_stream_is_the_record(client: Client, directory: RunDirectory) -> None:
    """Lines come as they are written, the stream ends with the sweep, and may be gone on with."""
    with SweepLog(directory, STARTED) as log:
        async with client.open("/sweeps/00001/stream") as stream:
            assert (await stream.next()).body == json.loads(codec.encode(log.started))
            log.append(CELLS[:2])
            assert [(await stream.next()).body["position"] for _ in range(2)] == [0, 1]
            log.append(CELLS[2:])
            log.end(SweepEnded(status="finished"))
            rest = await stream.rest()
    assert [event.name for event in rest] == ["cell"] * 10 + ["end"]
    assert [event.cursor for event in rest] == [str(at) for at in range(4, 15)]
    async with client.open("/sweeps/00001/stream", last_event_id="12") as stream:
        assert [event.cursor for event in await stream.rest()] == ["13", "14"]
    headers = {"last-event-id": "14"}
    assert (await client.http.get("/sweeps/00001/stream", headers=headers)).status_code == 204
    for odd in ("-1", "x", "9" * 40):
        async with client.open("/sweeps/00001/stream", last_event_id=odd) as stream:
            assert len(await stream.rest()) == 14


async def test_the_page_is_told_what_is_different(client: Client, directory: RunDirectory) -> None:
    """Each cell once, the frame of the best where it is now, and at last that it is over."""
    with SweepLog(directory, STARTED) as log:
        log.append(CELLS[:3])
        page = (await client.http.get("/sweeps/00001")).text
        assert 'data-stream="00001/stream?drawn"' in page
        async with client.open("/sweeps/00001/stream?drawn") as stream:
            first = (await stream.next()).body
            assert set(first["marks"]) == {"h0-0-0", "h0-0-1", "h0-0-2"}
            assert (first["cells"], first["status"], first["badge"]) == (3, "running", "active")
            log.append([*CELLS[2:], CELLS[0]])
            second = (await stream.next()).body
            assert len(second["marks"]) == 9
            assert "h0-0-2" not in second["marks"]
            assert second["said"]["said-0"].startswith("most at layer 1, position 2")
            log.end(SweepEnded(status="finished"))
            last = await stream.rest()
    assert [event.name for event in last] == ["drawn", "over"]
    assert last[0].body["status"] == "finished"
    after = (await client.http.get("/sweeps/00001")).text
    for name, (kind, _, title) in (first["marks"] | second["marks"]).items():
        assert re.search(
            rf'id="{name}" class="{kind}"[^>]*><title>{re.escape(escape(title))}<', after
        )


async def test_open_streams_end_with_the_server(directory: RunDirectory, connect: Any) -> None:
    """In less than the time after which a server gives up on them."""
    with SweepLog(directory, STARTED), anyio.fail_after(10):
        app = create_app(directory.cfg)
        async with connect(app) as client, client.open("/sweeps/00001/stream") as stream:
            assert (await stream.next()).name == "start"
            app.state.stopping.stop()
            assert await stream.rest() == []


# -- starting one ----------------------------------------------------------------------------------


async def post(
    client: Client, path: str = "/sweeps", *, headers: dict[str, str] | None = None, **form: str
) -> Any:
    """Send the form as a browser does."""
    own = {"content-type": "application/x-www-form-urlencoded"}
    body = urlencode(ORDER | form).encode()
    return await client.http.post(path, content=body, headers=own | (headers or {}))


async def test_a_form_starts_a_sweep(
    client: Client, starter: Starter, directory: RunDirectory
) -> None:
    """Of the run whose page it is; the browser goes back to the list, which says so."""
    for root in ("", "/setup/run/run/0/sae"):
        starter.made = None
        answer = await post(client, f"{root}/sweeps")
        assert answer.status_code == 303
        assert answer.headers["location"] == "sweeps"
        run, order = starter.orders[-1]
        assert run == directory.root
        assert (order.prompt, order.hooks, order.checkpoint) == (
            "41 62 =>",
            ("resid_pre",),
            "latest",
        )
    page = (await client.http.get("/sweeps")).text
    assert "A sweep of latest is being made" in page
    answer = await post(client, "/sweeps/stop")
    assert (answer.status_code, answer.headers["location"]) == (303, "../sweeps")
    assert starter.stopped == [directory.root]


async def test_a_form_that_is_wrong_comes_back(client: Client, starter: Starter) -> None:
    """With what was typed, escaped, and what is wrong beside its field; nothing is started."""
    answer = await post(client, answer="", prompt="<script>&", layers="1-3")
    assert answer.status_code == 422
    assert 'id="trouble-answer"' in answer.text
    assert 'id="trouble-layers"' in answer.text
    assert 'id="trouble-prompt"' not in answer.text
    assert "&lt;script&gt;&amp;" in answer.text
    assert starter.orders == []


async def test_an_error_that_comes_later_stands_beside_its_field(
    client: Client, starter: Starter
) -> None:
    """What the sweep itself refused is shown with the order that it refused."""
    order = SweepOrder(prompt="41", answer="SPACE DIGIT", foil="LOWER")
    error = "Expected `foil` to be as many tokens as the answer has: 2, got [265]"
    starter.made = Starting(order=order, running=False, error=error)
    page = (await client.http.get("/sweeps")).text
    assert re.search(r'id="trouble-foil"[^>]*>Expected `foil` to be', page)
    assert 'value="SPACE DIGIT"' in page
    assert (await client.http.get("/sweeps.json")).json()["starting"]["error"] == error


async def test_what_a_button_ordered_can_be_ordered_again(client: Client, starter: Starter) -> None:
    """An order with token ids fills the form with them, and the form takes it as it is."""
    order = SweepOrder(prompt_ids="1,2", answer_ids="3", latent="2:448", hooks=(), layers="")
    starter.made = Starting(order=order, running=False, error="Expected `latent` to be another")
    page = (await client.http.get("/sweeps")).text
    assert '<details class="ids" open>' in page
    assert 'name="prompt_ids" value="1,2"' in page
    assert re.search(r'id="trouble-latent"[^>]*>Expected `latent`', page)
    fields: dict[str, Any] = {"prompt": "", "clean_prompt": "", "answer": "", "hooks": ""}
    fields |= {"prompt_ids": "1,2", "answer_ids": "3", "latent": "2:448", "preview": "1"}
    assert (await post(client, **fields)).status_code == 303
    assert starter.orders[-1][1] == msgspec.structs.replace(order, preview=True)
    starter.made = None
    assert '<details class="ids">' in (await client.http.get("/sweeps")).text


async def test_one_sweep_at_a_time(client: Client, starter: Starter) -> None:
    """A second order of the same run is told that there is one."""
    assert (await post(client)).status_code == 303
    answer = await post(client)
    assert answer.status_code == 422
    assert "A sweep of this run is being made" in answer.text
    assert len(starter.orders) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "evil.example"},
    ],
)
@pytest.mark.parametrize("path", ["/sweeps", "/sweeps/stop"])
async def test_pages_of_others_start_nothing(
    client: Client, starter: Starter, headers: dict[str, str], path: str
) -> None:
    """Neither another site's page nor one that has rebound its name."""
    assert (await post(client, path, headers=headers)).status_code == 403
    assert (starter.orders, starter.stopped) == ([], [])


async def test_an_allowed_origin_may_read_and_not_start(
    directory: RunDirectory, starter: Starter, connect: Any
) -> None:
    """Whose pages may see the answers may not start processes."""
    app = create_app(directory.cfg, sweep_starter=starter, allowed_origins=["https://ui.example"])
    headers = {"origin": "https://ui.example"}
    async with connect(app) as client:
        assert (await client.http.get("/sweeps.json", headers=headers)).status_code == 200
        assert (await post(client, headers=headers)).status_code == 403
    assert starter.orders == []


async def test_a_form_that_is_too_long_is_not_read(client: Client, starter: Starter) -> None:
    """The answer says how long it may be."""
    answer = await post(client, prompt="x" * 300_000)
    assert answer.status_code == 413
    assert "262144 bytes" in answer.json()["error"]


async def test_where_none_can_be_started_the_page_says_why(
    client: Client, starter: Starter, directory: RunDirectory, connect: Any
) -> None:
    """And what to install, or which command to use; a request all the same is refused."""
    starter.refused = "torch is not installed. Install it with: pip install 'aegir-stream[x]'"
    page = (await client.http.get("/sweeps")).text
    assert "pip install &#39;aegir-stream[x]&#39;" in page
    assert "<form" not in page
    assert (await post(client)).status_code == 403
    async with connect(create_app(directory.cfg)) as alone:
        assert "use: aegir sweep" in (await alone.http.get("/sweeps")).text
        assert (await post(alone)).status_code == 403
    assert starter.orders == []


async def test_pages_can_be_had_undrawn(client: Client, directory: RunDirectory) -> None:
    """A development server draws them with its own templates."""
    record(directory)
    headers = {"accept": "application/vnd.aegir.page+json"}
    for path, template in (("/sweeps", "sweeps.html"), ("/sweeps/00001", "sweep.html")):
        page = (await client.http.get(path, headers=headers)).json()
        assert page["template"] == template
