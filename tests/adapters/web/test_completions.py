"""The pages of a run's completions, on a real connection."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from adapters.web.completing import CompletionRun, completion
from adapters.web.conftest import Client
from adapters.web.test_sweeps import Starter
from aegir_adapters.web import create_app
from aegir_adapters.web.completion_shelf import CompletionShelf
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks.journal import JournalSink

pytestmark = pytest.mark.anyio

UNDRAWN = {"accept": "application/vnd.aegir.page+json"}
HOSTILE = '</p><script>window.evil=1</script>"><img src=x onerror=alert(1)>\x00\u202e'


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[CompletionRun]:
    """A run that was not written yet."""
    run = CompletionRun(tmp_path / "run")
    yield run
    await run.finish()


@pytest.fixture
def starter() -> Starter:
    """A starter."""
    return Starter()


@pytest.fixture
async def client(run: CompletionRun, starter: Starter, connect: Any) -> AsyncIterator[Client]:
    """A client of a server that shows the run and may start sweeps."""
    async with connect(create_app(run.directory.cfg, sweep_starter=starter)) as client:
        yield client


async def said(client: Client, path: str) -> dict[str, Any]:
    """Return what a page says."""
    answer = await client.http.get(path, headers=UNDRAWN)
    assert answer.status_code == 200, answer.text
    context: dict[str, Any] = answer.json()["context"]
    return context


# -- the list --------------------------------------------------------------------------------------


async def test_a_run_links_to_its_completions(client: Client, run: CompletionRun) -> None:
    """From its first page and from its viewer, at both places where its pages are."""
    await run.record(completion(1))
    assert 'href="completions"' in (await client.http.get("/")).text
    viewer = (await client.http.get("/setup/run/run/0")).text
    assert re.findall(r'href="([^"]*completions)"', viewer) == ["0/sae/completions"]
    for root in ("", "/setup/run/run/0/sae"):
        listed = await client.http.get(f"{root}/completions")
        assert 'href="completions/1-0"' in listed.text
        one = await client.http.get(f"{root}/completions/1-0")
        assert one.status_code == 200
        assert 'href="../static/page.css"' in one.text


async def test_a_run_without_completions_says_so(client: Client, run: CompletionRun) -> None:
    """Before it is there, and when it has begun."""
    for _ in range(2):
        assert 'href="completions"' not in (await client.http.get("/")).text
        page = await client.http.get("/completions")
        assert page.status_code == 200
        assert "No completion of this run is recorded yet." in page.text
        await run.save(1)


async def test_the_newest_step_is_listed_first(client: Client, run: CompletionRun) -> None:
    """By prompt, the best rewarded first; the other steps are a link away."""
    await run.record(completion(1))
    await run.record(
        completion(3, 0, reward=float("nan")),
        completion(3, 1, reward=0.25),
        completion(3, 2, reward=-1.0),
        completion(3, 3, reward=0.75, terminated=False),
    )
    listed = (await said(client, "/completions"))["step"]
    assert (listed["step"], listed["count"]) == (3, 4)
    assert listed["around"] == {"oldest": 1, "older": 1, "newer": None, "newest": 3}
    rows = [[row["name"] for row in group["completions"]] for group in listed["groups"]]
    assert rows == [["3-1", "3-0"], ["3-3", "3-2"]]
    assert listed["groups"][0]["prompt"] == "2 3 1"
    assert listed["groups"][1]["completions"][0]["length"] == "3, cut off"
    await run.save(3)
    listed = (await said(client, "/completions"))["step"]
    assert listed["groups"][0]["prompt"] == "41 62 =>"


@pytest.mark.parametrize(
    ("query", "step"),
    [
        ("step=2", 2),
        ("step=5", 4),
        ("step=9", 7),
        ("step=0", 2),
        ("step=x", 7),
        ("", 7),
        ("step=-3", 7),
    ],
)
async def test_any_step_can_be_asked_for(
    client: Client, run: CompletionRun, query: str, step: int
) -> None:
    """One that is not there is the nearest before it, and the page says so."""
    for at in (2, 4, 7):
        await run.record(completion(at))
    found = await said(client, f"/completions?{query}")
    assert found["step"]["step"] == step
    page = (await client.http.get(f"/completions?{query}")).text
    wanted = found["wanted"]
    assert ("these are the nearest" in page) == (wanted is not None and wanted != step)


async def test_a_large_step_comes_in_parts(client: Client, run: CompletionRun) -> None:
    """Each completion stands in one of them."""
    await run.record(*(completion(1, at, group=at // 8) for at in range(600)), layers=())
    names: list[str] = []
    for part in (1, 2, 3):
        listed = (await said(client, f"/completions?page={part}"))["step"]
        assert (listed["page"], listed["pages"], listed["count"]) == (part, 3, 600)
        names += [row["name"] for group in listed["groups"] for row in group["completions"]]
    assert sorted(names) == sorted(f"1-{at}" for at in range(600))
    assert (await said(client, "/completions?page=9"))["step"]["page"] == 3


async def test_lines_that_tell_of_one_completion_count_once(
    client: Client, run: CompletionRun
) -> None:
    """That it was trained on again is no other completion; an evaluation's are."""
    await run.record(
        completion(2, 0, text="first"),
        completion(2, 0, iteration=1, text="again"),
        completion(2, 0, pass_="eval", text="evaluated"),
        completion(2, 1, pass_="decode", text="sampled"),
    )
    groups = (await said(client, "/completions"))["step"]["groups"]
    rows = [(row["text"], row["address"]) for group in groups for row in group["completions"]]
    assert rows == [
        ("first", "completions/2-0"),
        ("sampled", "completions/2-1"),
        ("evaluated", "completions/2-0?pass=eval"),
    ]
    assert [group["evaluated"] for group in groups] == [False, True]
    evaluated = await said(client, "/completions/2-0?pass=eval")
    assert evaluated["completion"]["text"] == "evaluated"
    assert [row["text"] for row in evaluated["group"]] == ["evaluated"]


async def test_what_a_resume_rewound_is_not_listed(run: CompletionRun, connect: Any) -> None:
    """The completions of an attempt that a later one went back behind are gone."""
    await run.record(completion(1))
    await run.save(1)
    await run.record(completion(2, 0, text="abandoned"), completion(2, 1))
    await run.finish()
    second = CompletionRun(run.directory.root)
    second._sink = JournalSink(run.directory, continues="checkpoint-1")
    await second.record(completion(2, 0, text="kept"))
    async with connect(create_app(run.directory.cfg)) as client:
        listed = (await said(client, "/completions"))["step"]
        rows = [row["text"] for group in listed["groups"] for row in group["completions"]]
    await second.finish()
    assert rows == ["kept"]


# -- one completion --------------------------------------------------------------------------------


async def test_a_completion_shows_what_its_tokens_activate(
    client: Client, run: CompletionRun
) -> None:
    """Its text in colour, its latents at each layer, and the others of its prompt."""
    await run.record(completion(3, 0), completion(3, 1, reward=0.0), completion(3, 2))
    await run.save(4)
    found = await said(client, "/completions/3-0?latent=2:11")
    assert found["prompt"]["tokens"] == ["41", " 62", " =>"]
    view = found["view"]
    assert [token["text"] for token in view["line"]] == ["UPPER", " LOWER", " <eos>"]
    assert [token["shade"] for token in view["line"]] == ["t0", "t10", "t0"]
    assert view["layers"] == [0, 2]
    latents = [one["latent"] for one in view["rows"][1]["layers"][1]["latents"]]
    assert latents == [11, 7]
    assert [(row["name"], row["chosen"]) for row in found["group"]] == [
        ("3-0", True),
        ("3-1", False),
    ]
    assert dict(found["facts"])["Ended"] == "by itself"
    page = (await client.http.get("/completions/3-0")).text
    assert '<a href="3-1">3-1</a>' in page
    assert 'value="1:2:11" aria-label="Ablate latent 11 of layer 2 at token 1"' in page


async def test_what_was_not_recorded_is_named(client: Client, run: CompletionRun) -> None:
    """Without token ids the text is shown, tokens are numbers, and the option has a name."""
    await run.record(
        completion(3, 0, token_ids=None, prompt_ids=None, text="UPPER\nLOWER"),
        completion(3, 1, token_ids=None, prompt_ids=None, text=None),
    )
    await run.save(4)
    page = (await client.http.get("/completions/3-0")).text
    assert "UPPER\nLOWER" in page
    assert "record_token_ids=True" in page
    assert "<button name" not in page
    found = await said(client, "/completions/3-1")
    assert [token["text"] for token in found["view"]["line"]] == ["#0", "#1", "#2"]
    assert any("record_text=True" in note for note in found["notes"])
    assert "record_text=True" not in (await client.http.get("/completions")).text
    await run.record(completion(5, token_ids=None, text=None))
    assert "record_text=True" in (await client.http.get("/completions")).text


async def test_records_may_be_absent(client: Client, run: CompletionRun) -> None:
    """The page says so, and shows the rest."""
    await run.record(completion(3), layers=())
    found = await said(client, "/completions/3-0")
    assert any("no SAE records" in note for note in found["notes"])
    assert "What each token activates" not in (await client.http.get("/completions/3-0")).text


async def test_text_of_a_model_is_text(client: Client, run: CompletionRun) -> None:
    """It begins no element, hides nothing and turns nothing around."""
    await run.record(
        completion(3, 0, text=HOSTILE, token_ids=None, rewards={HOSTILE: 1.0, "b": 2.0}),
        completion(3, 1, text=HOSTILE, token_ids=None),
    )
    for path in ("/completions", "/completions/3-0"):
        answer = await client.http.get(path)
        assert "<script>window" not in answer.text
        assert "<img" not in answer.text
        assert "\u202e" not in answer.text
        assert "\\u{202e}" in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'nonce-" in policy


@pytest.mark.parametrize(
    "name", ["3-1", "4-0", "x", "3", "3-0-0", "-3-0", "3-0%00", "..%2f3-0", "9" * 10 + "-0"]
)
async def test_a_completion_that_is_not_there(
    client: Client, run: CompletionRun, name: str
) -> None:
    """Names are looked up, and a bad one is no failure."""
    await run.record(completion(3))
    assert (await client.http.get(f"/completions/{name}")).status_code == 404
    assert (
        await client.http.post(f"/completions/{name}", content=b"ablate=0:2:1")
    ).status_code in {
        404,
        405,
    }


async def test_damaged_lines_cost_themselves_only(client: Client, run: CompletionRun) -> None:
    """What cannot be read is left out."""
    await run.record(completion(3, 0), completion(3, 1))
    path = run.directory.live("completions")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1:1] = [b"\xff\xfe\n", b'{"step":3,"completion":[]}\n', b'{"step":3,"completion":5}\n']
    path.write_bytes(b"".join(lines))
    listed = (await said(client, "/completions"))["step"]
    rows = [row["name"] for group in listed["groups"] for row in group["completions"]]
    assert rows == ["3-0", "3-1"]
    assert (await client.http.get("/completions/3-5")).status_code == 404


async def test_a_checkpoint_that_moves_the_records_away(run: CompletionRun) -> None:
    """Reading is tried again when a file was sealed meanwhile."""
    await run.record(completion(3))
    shelf = CompletionShelf(run.directory)
    look = shelf._records._content
    moved: list[Any] = []

    def moving(place: Any) -> Any:
        if not moved:
            moved.append(place)
            raise FileNotFoundError(place.path)
        return look(place)

    shelf._records._content = moving  # type: ignore[method-assign]
    found = shelf.completion(3, 0, evaluated=False)
    assert moved
    assert found
    assert len(found.records["loss"]) == 3


async def test_what_cannot_be_read_is_said(run: CompletionRun, connect: Any) -> None:
    """With the reason, and not as a failure of the server."""
    await run.record(completion(3))
    gone = _Unreadable(run.directory)
    async with connect(create_app(run.directory.cfg)) as client:
        gone.break_it()
        for path in ("/completions", "/completions/3-0"):
            answer = await client.http.get(path)
            assert answer.status_code == 503
            assert "cannot be read: Is a directory" in answer.json()["error"]


class _Unreadable:
    """A feed that becomes a directory."""

    def __init__(self, run: RunDirectory) -> None:
        self.path = run.live("completions")

    def break_it(self) -> None:
        self.path.unlink()
        self.path.mkdir()


# -- one click -------------------------------------------------------------------------------------


async def click(
    client: Client, name: str = "3-0", *, headers: dict[str, str] | None = None, **form: str
) -> Any:
    """Send what a button sends."""
    own = {"content-type": "application/x-www-form-urlencoded"}
    body = urlencode({"checkpoint": "checkpoint-4", "ablate": "1:2:11"} | form).encode()
    path = name if name.startswith("/") else f"/completions/{name}"
    return await client.http.post(path, content=body, headers=own | (headers or {}))


async def test_a_click_starts_a_sweep(client: Client, run: CompletionRun, starter: Starter) -> None:
    """Of the tokens up to that one, and what it measures is the next; then the list of sweeps."""
    await run.record(completion(3))
    await run.save(4)
    for root in ("", "/setup/run/run/0/sae"):
        starter.made = None
        answer = await click(client, f"{root}/completions/3-0?token=1")
        assert (answer.status_code, answer.headers["location"]) == (303, "../sweeps#making")
        directory, order = starter.orders[-1]
        assert directory == run.directory.root
        assert (order.prompt_ids, order.answer_ids) == ("2,3,1,5,6", "0")
        assert (order.latent, order.metric, order.checkpoint) == ("2:11", "logprob", "checkpoint-4")
    page = (await client.http.get("/sweeps")).text
    assert "A sweep of latent 2:11 on checkpoint-4 is being made" in page


async def test_a_click_that_comes_to_nothing_says_why(
    client: Client, run: CompletionRun, starter: Starter
) -> None:
    """On the page where it was made, with the token that it was about."""
    await run.record(completion(3))
    await run.save(4)
    assert (await click(client)).status_code == 303
    busy = await click(client)
    assert busy.status_code == 422
    assert "A sweep of this run is being made" in busy.text
    assert '<tr id="token-1" aria-current="true">' in busy.text
    starter.made = None
    for form, told in (
        (("2:2:11", "checkpoint-4"), "No token follows"),
        (("x", "checkpoint-4"), "could not be read"),
        (("1:2:11", "checkpoint-9"), "Choose one"),
    ):
        answer = await click(client, ablate=form[0], checkpoint=form[1])
        assert answer.status_code == 422
        assert told in answer.text
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
async def test_pages_of_others_start_nothing(
    client: Client, run: CompletionRun, starter: Starter, headers: dict[str, str]
) -> None:
    """As with the form."""
    await run.record(completion(3))
    await run.save(4)
    assert (await click(client, headers=headers)).status_code == 403
    assert starter.orders == []


async def test_a_click_that_is_too_long_is_not_read(
    client: Client, run: CompletionRun, starter: Starter
) -> None:
    """The answer says how long it may be."""
    await run.record(completion(3))
    answer = await click(client, checkpoint="x" * 300_000)
    assert answer.status_code == 413
    assert starter.orders == []


async def test_why_there_is_no_button(
    client: Client, run: CompletionRun, starter: Starter, connect: Any
) -> None:
    """No checkpoint, no SAE of a layer, no libraries, no starter: each in plain sight."""
    await run.record(completion(3))
    page = (await client.http.get("/completions/3-0")).text
    assert "the run has no checkpoint" in page
    assert "<button name" not in page
    await run.save(4, sae={"2": {"path": "saes/layer-2"}})
    page = (await client.http.get("/completions/3-0")).text
    assert "Latents of layer 0 cannot be tested from here: the run does not say" in page
    assert set(re.findall(r'name="ablate" value="\d+:(\d+):', page)) == {"2"}
    starter.refused = "torch is not installed. Install it with: pip install 'aegir-stream[x]'"
    page = (await client.http.get("/completions/3-0")).text
    assert "torch is not installed" in page
    assert "<button name" not in page
    assert (await click(client)).status_code == 403
    async with connect(create_app(run.directory.cfg)) as alone:
        assert "use: aegir sweep" in (await alone.http.get("/completions/3-0")).text
        assert (await click(alone)).status_code == 403
    assert starter.orders == []


async def test_pages_can_be_had_undrawn(client: Client, run: CompletionRun) -> None:
    """A development server draws them with its own templates, those of a failure included."""
    await run.record(completion(3))
    for path, template in (
        ("/completions", "completions.html"),
        ("/completions/3-0", "completion.html"),
    ):
        page = (await client.http.get(path, headers=UNDRAWN)).json()
        assert page["template"] == template
    failed = await click(client, headers=UNDRAWN, ablate="9:9")
    assert failed.status_code == 422
    assert failed.json()["context"]["trouble"] == "The form could not be read."
