"""What somebody sees who looks at a completion and tests a latent, in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.async_api import Page, expect
from transformers import Qwen3Config, Qwen3ForCausalLM

from adapters.train.small import top_k_sae
from adapters.web.browsing import CHROMIUM, FAINTEST, LEFTMOST, real_browser
from adapters.web.completing import WORDS, CompletionRun, completion
from adapters.web.test_sweeps import Starter
from aegir_adapters.cli.sweep_processes import SweepProcesses
from aegir_adapters.sae import save_sae
from aegir_adapters.web import SweepStarter, create_app, serve
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_reader import read_sweep

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

WIDTH = 16
PATIENCE_MS = 60_000
HOSTILE = '<script>window.evil=1</script>"><img src=x onerror="window.evil=1">'


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[CompletionRun]:
    """A run that was not written yet."""
    run = CompletionRun(tmp_path / "run")
    yield run
    await run.finish()


@asynccontextmanager
async def visit(run: RunDirectory, starter: SweepStarter, **options: Any) -> AsyncIterator[Page]:
    """Open a page on a server that shows the run; nothing may go wrong in it."""
    with serve(create_app(run.cfg, sweep_starter=starter), port=0) as server:
        async with real_browser() as browser:
            page = await browser.new_page(base_url=server.address, **options)
            problems: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
            yield page
            assert problems == []
            assert await page.evaluate("window.evil") is None


async def save_policy(run: CompletionRun) -> None:
    """Save a checkpoint with a policy of random weights, and an SAE of its first layer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(run.directory.root / "checkpoint-4")
    sae = top_k_sae(seed=0, d_model=WIDTH, n_latents=32)
    path = save_sae(sae, run.directory.root / "saes" / "layer-0")
    await run.save(4, sae={"0": sae.identity() | {"path": str(path)}})


async def test_one_click_tests_a_latent(run: CompletionRun) -> None:
    """From the list to a token's latent, and from its button to a sweep that a process makes."""
    await run.record(completion(3), layers=(0,))
    await save_policy(run)
    with SweepProcesses() as starter:
        async with visit(run.directory, starter) as page:
            await page.goto("/")
            await page.click("text=Completions:")
            await page.click("text=3-0")
            await page.click("text=LOWER")
            await expect(page.locator("tr[aria-current] td.token").first).to_have_text(" LOWER")
            await page.focus("button[value='1:0:11']")
            await page.keyboard.press("Enter")
            await page.wait_for_url("**/sweeps#making")
            await expect(page.locator("#making")).to_contain_text("latent 0:11 on checkpoint-4")
            await page.click("text=00001", timeout=PATIENCE_MS)
            finished = expect(page.locator("#badge"))
            await finished.to_have_text("finished", timeout=PATIENCE_MS)
            await expect(page.locator("header")).to_contain_text("latent 0:11 ablated")
            await expect(page.locator("rect.p")).to_have_count(0)
    reader = read_sweep(run.directory, "00001")
    assert reader
    started = reader.grids.started
    assert started
    assert started.tokens == ("41", "62", "=>", "UPPER", "LOWER")
    assert (started.answer, started.metric, started.source) == ("<eos>", "logprob", "latent")
    assert started.latent
    assert (started.latent.layer, started.latent.index) == (0, 11)
    assert (started.layers, started.hooks) == ((0,), ("resid_post",))


async def test_a_latent_colours_the_tokens_without_a_script(run: CompletionRun) -> None:
    """Everything that can be chosen is a link or a form."""
    await run.record(completion(3))
    await run.save(4)
    async with visit(run.directory, Starter(), java_script_enabled=False) as page:
        await page.goto("/completions/3-0")
        await page.get_by_role("link", name="latent 2:11").click()
        colours = [await one.get_attribute("class") for one in await page.locator("a.piece").all()]
        assert colours == ["piece t0", "piece t10", "piece t0"]
        await page.fill("#latent", "0:12")
        await page.press("#latent", "Enter")
        await expect(page.locator("#legend")).to_contain_text("latent 12 of layer 0: at most 4")
        await page.goto("/completions")
        await page.fill("#step", "1")
        await page.press("#step", "Enter")
        await expect(page.get_by_role("status")).to_contain_text("no completions of step 1")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_fit_and_are_legible(run: CompletionRun, width: int, scheme: Any) -> None:
    """However long and hostile the texts: nothing sticks out, runs, or is too faint to read."""
    await run.record(
        completion(3, 0, rewards={HOSTILE: 1.0, "b": None}),
        completion(3, 1, text=HOSTILE, token_ids=None, prompt_ids=None),
        completion(3, 2, text="x" * 3000, token_ids=None),
        completion(3, 3, token_ids=(5, 6, 7) * 40, length=120, prompt_ids=(2, 3) * 200),
    )
    await run.save(4)
    tokenizer = run.directory.root / "checkpoint-4" / "tokenizer.json"
    hostile = HOSTILE.replace("\\", "").replace('"', '\\"')
    tokenizer.write_text(tokenizer.read_text("utf-8").replace('"UPPER"', f'"{hostile}"'), "utf-8")
    size: Any = {"width": width, "height": 900}
    async with visit(run.directory, Starter(), viewport=size, color_scheme=scheme) as page:
        for path in (
            "/completions",
            "/completions/3-0?latent=2:11&token=1",
            "/completions/3-0?loss=2",
            "/completions/3-1",
            "/completions/3-2",
            "/completions/3-3?token=60",
        ):
            await page.goto(path)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert await page.evaluate(FAINTEST) >= 4.5, path
            assert await page.evaluate(LEFTMOST) >= 0
        await page.goto("/completions/3-0")
        await expect(page.locator("a.piece").first).to_have_text(HOSTILE)
